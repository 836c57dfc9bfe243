#include "router/tokenizer/chat_format.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "router/tokenizer/utf8.h"
#include "router/tokenizer/vocabulary.h"

namespace facet {

enum class SystemPlace {
  kOwnTurn,    // at its own place, before the first turn
  kFirstUser,  // inside the first user's turn, before the content
  kLastUser,   // inside the last user's turn, before the content
};

// What stands before and after a content.
struct Around {
  std::string_view before;
  std::string_view after;
};

// In the texts, every string that is listed as a marker stands for that token, and <BOS> and
// <EOS> for the model's own. All else is plain text.
struct TurnFormat {
  std::string_view name;

  // When the row is chosen. All `markers` must be control tokens, `without_markers` none, and
  // the model's template must hold all of `in_template`; a file without a template is recognised
  // by its markers alone, where the row allows it.
  std::vector<std::string_view> markers;
  std::vector<std::string_view> without_markers = {};
  std::vector<std::string_view> in_template = {};
  bool needs_template = true;
  std::string_view architecture = {};  // general.architecture must begin with this

  bool begin_with_bos = false;
  Around system;
  Around user;
  Around assistant;
  std::string_view reply;  // begins the assistant's next turn
  SystemPlace system_place = SystemPlace::kOwnTurn;
  std::string_view default_system = {};
  bool always_system = false;  // the system's place is written even when there is nothing to say
  bool alternate = false;      // user and assistant must take turns, the user first
  bool trim = false;           // white space around contents is dropped
  bool drop_thoughts = false;  // earlier answers are shown without what they say up to "</think>"
  std::vector<std::string_view> stop_markers = {};
};

namespace {

constexpr std::string_view kBos = "<BOS>";
constexpr std::string_view kEos = "<EOS>";

TurnFormat ChatMl(std::string_view name, std::vector<std::string_view> in_template,
                  std::string_view default_system) {
  return {.name = name,
          .markers = {"<|im_start|>", "<|im_end|>"},
          .in_template = std::move(in_template),
          .system = {"<|im_start|>system\n", "<|im_end|>\n"},
          .user = {"<|im_start|>user\n", "<|im_end|>\n"},
          .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n"},
          .reply = "<|im_start|>assistant\n",
          .default_system = default_system};
}

// The template that can think holds the tag that ends a thought.
TurnFormat Qwen3() {
  TurnFormat row = ChatMl("qwen3", {"<|im_start|>", "</think>"}, "");
  row.drop_thoughts = true;
  return row;
}

TurnFormat Llama3(std::string_view name, std::vector<std::string_view> in_template) {
  return {.name = name,
          .markers = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
          .in_template = std::move(in_template),
          .begin_with_bos = true,
          .system = {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},
          .user = {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"},
          .assistant = {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"},
          .reply = "<|start_header_id|>assistant<|end_header_id|>\n\n",
          .trim = true};
}

// The 3.1 template names two dates before the system prompt, always. The second one is its default.
TurnFormat Llama31() {
  TurnFormat row = Llama3("llama3.1", {"<|start_header_id|>", "Cutting Knowledge Date"});
  row.system.before =
      "<|start_header_id|>system<|end_header_id|>\n\n"
      "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
  row.always_system = true;
  return row;
}

// The first row that fits is taken, so the more special stand before the more general.
const std::vector<TurnFormat>& Rows() {
  static const auto* rows = new std::vector<TurnFormat>{
      {.name = "gemma",
       .markers = {"<start_of_turn>", "<end_of_turn>"},
       .in_template = {"<start_of_turn>"},
       .needs_template = false,
       .begin_with_bos = true,
       .system = {"", "\n\n"},
       .user = {"<start_of_turn>user\n", "<end_of_turn>\n"},
       .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n"},
       .reply = "<start_of_turn>model\n",
       .system_place = SystemPlace::kFirstUser,
       .alternate = true,
       .trim = true},

      ChatMl("smollm2", {"<|im_start|>", "named SmolLM, trained by Hugging Face"},
             "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
      ChatMl("qwen2.5", {"<|im_start|>", "You are Qwen, created by Alibaba Cloud"},
             "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
      ChatMl("qwen2", {"<|im_start|>", "You are a helpful assistant"},
             "You are a helpful assistant."),
      Qwen3(),
      ChatMl("chatml", {"<|im_start|>"}, ""),

      Llama31(),
      Llama3("llama3", {"<|start_header_id|>"}),

      {.name = "mistral-v7",
       .markers = {"[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
       .in_template = {"[SYSTEM_PROMPT]"},
       .begin_with_bos = true,
       .system = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
       .user = {"[INST]", "[/INST]"},
       .assistant = {"", "<EOS>"},
       .alternate = true},
      // "[INST] U1" in the published strings of v3 is this: the space is SentencePiece's own.
      {.name = "mistral-v3",
       .markers = {"[INST]", "[/INST]"},
       .in_template = {"[INST]"},
       .begin_with_bos = true,
       .system = {"", "\n\n"},
       .user = {"[INST]", "[/INST]"},
       .assistant = {"", "<EOS>"},
       .system_place = SystemPlace::kLastUser,
       .alternate = true},
      {.name = "llama2",
       .markers = {},
       .in_template = {"[INST]", "<<SYS>>"},
       .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"},
       .user = {"<BOS>[INST] ", " [/INST]"},
       .assistant = {" ", " <EOS>"},
       .system_place = SystemPlace::kFirstUser,
       .alternate = true,
       .trim = true},
      {.name = "mistral-v1",
       .markers = {},
       .without_markers = {"[INST]"},
       .in_template = {"[INST]"},
       .begin_with_bos = true,
       .system = {"", "\n\n"},
       .user = {"[INST] ", " [/INST]"},
       .assistant = {" ", "<EOS>"},
       .system_place = SystemPlace::kFirstUser,
       .alternate = true},

      {.name = "deepseek-v3",
       .markers = {"<｜User｜>", "<｜Assistant｜>"},
       .in_template = {"Assistant"},
       .begin_with_bos = true,
       .system = {"", ""},
       .user = {"<｜User｜>", ""},
       .assistant = {"<｜Assistant｜>", "<EOS>"},
       .reply = "<｜Assistant｜>",
       .drop_thoughts = true},
      {.name = "deepseek",
       .markers = {"<｜end▁of▁sentence｜>"},
       .without_markers = {"<｜User｜>"},
       .in_template = {"User: ", "Assistant:"},
       .begin_with_bos = true,
       .system = {"", "\n\n"},
       .user = {"User: ", "\n\n"},
       .assistant = {"Assistant: ", "<EOS>"},
       .reply = "Assistant:"},

      {.name = "nemotron",
       .markers = {"<extra_id_0>", "<extra_id_1>"},
       .in_template = {"<extra_id_1>"},
       .architecture = "nemotron",
       .system = {"<extra_id_0>System\n", "\n\n"},
       .user = {"<extra_id_1>User\n", "\n"},
       .assistant = {"<extra_id_1>Assistant\n", "\n"},
       .reply = "<extra_id_1>Assistant\n",
       .always_system = true,
       .trim = true,
       .stop_markers = {"<extra_id_1>"}},
      // Its files carry no template, and the base model's vocabulary has the markers as well.
      {.name = "baichuan2",
       .markers = {"<reserved_106>", "<reserved_107>"},
       .needs_template = false,
       .architecture = "baichuan",
       .system = {"", ""},
       .user = {"<reserved_106>", ""},
       .assistant = {"<reserved_107>", ""},
       .reply = "<reserved_107>",
       .stop_markers = {"<reserved_106>"}},
  };
  return *rows;
}

bool Fits(const TurnFormat& row, const ChatFormat::Hints& hints, const Tokenizer& tokenizer) {
  // One that is not a control token could be spelled by anyone.
  const auto in_vocabulary = [&](std::string_view text) {
    const std::optional<TokenId> id = tokenizer.Find(text);
    return id.has_value() && tokenizer.IsControl(*id);
  };
  if (!hints.architecture.starts_with(row.architecture)) return false;
  if (!std::all_of(row.markers.begin(), row.markers.end(), in_vocabulary)) return false;
  if (std::any_of(row.without_markers.begin(), row.without_markers.end(), in_vocabulary)) {
    return false;
  }
  if (!hints.chat_template.has_value()) return !row.needs_template;
  return std::all_of(row.in_template.begin(), row.in_template.end(), [&](std::string_view text) {
    return hints.chat_template->find(text) != std::string_view::npos;
  });
}

// What follows the last "</think>" and its line ends, as the families' templates cut it.
std::string_view WithoutThoughts(std::string_view content) {
  constexpr std::string_view kEndOfThought = "</think>";
  const size_t end = content.rfind(kEndOfThought);
  if (end == std::string_view::npos) return content;
  content.remove_prefix(end + kEndOfThought.size());
  content.remove_prefix(std::min(content.find_first_not_of('\n'), content.size()));
  return content;
}

}  // namespace

// Collects text and ids; text between two ids is encoded in one go, because the reference encodes
// "user\n" and the content after it together, and tokens may span the seam.
class ChatFormat::Writer {
 public:
  explicit Writer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Add(const Pieces& pieces) {
    for (const Piece& piece : pieces) {
      text_ += piece.text;
      if (piece.marker.has_value()) AddId(*piece.marker);
    }
  }
  void AddText(std::string_view text) { text_ += text; }
  void AddId(TokenId id) {
    Flush();
    ids_.push_back(id);
  }
  std::vector<TokenId> Finish() {
    Flush();
    return std::move(ids_);
  }

 private:
  void Flush() {
    const std::vector<TokenId> ids = tokenizer_.Encode(text_, {.add_bos = false});
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    text_.clear();
  }

  const Tokenizer& tokenizer_;
  std::string text_;
  std::vector<TokenId> ids_;
};

absl::StatusOr<ChatFormat> ChatFormat::Choose(const GgufModel& model, const Tokenizer& tokenizer) {
  Hints hints;
  FACET_ASSIGN_OR_RETURN(hints.architecture, model.GetString("general.architecture"));
  if (model.Has("tokenizer.chat_template")) {
    FACET_ASSIGN_OR_RETURN(hints.chat_template, model.GetString("tokenizer.chat_template"));
  }
  return Choose(hints, tokenizer);
}

absl::StatusOr<ChatFormat> ChatFormat::Choose(const Hints& hints, const Tokenizer& tokenizer) {
  for (const TurnFormat& row : Rows()) {
    if (Fits(row, hints, tokenizer)) return ChatFormat(row, tokenizer);
  }
  return FailedPrecondition("model has no chat format: {}",
                            hints.chat_template.has_value()
                                ? "its template is none of the known families'"
                                : "it carries no template, and its vocabulary no turn markers");
}

ChatFormat::ChatFormat(const TurnFormat& row, const Tokenizer& tokenizer)
    : row_(&row), tokenizer_(&tokenizer) {
  const auto around = [&](const Around& texts) {
    return Turn{Compile(texts.before), Compile(texts.after)};
  };
  system_ = around(row.system);
  user_ = around(row.user);
  assistant_ = around(row.assistant);
  reply_ = Compile(row.reply);
  for (const std::string_view marker : row.markers) FACET_CHECK(IsTurnMarker(marker), "{}", marker);
  for (const std::string_view marker : row.stop_markers) {
    stop_tokens_.push_back(*tokenizer.Find(marker));
  }
}

std::string_view ChatFormat::name() const { return row_->name; }

ChatFormat::Pieces ChatFormat::Compile(std::string_view text) const {
  std::vector<std::pair<std::string_view, std::optional<TokenId>>> marks = {
      {kBos, tokenizer_->bos()}, {kEos, tokenizer_->eos()}};
  for (const std::string_view marker : row_->markers) {
    marks.emplace_back(marker, tokenizer_->Find(marker));
  }
  Pieces pieces(1);
  while (!text.empty()) {
    const auto mark = std::find_if(marks.begin(), marks.end(),
                                   [&](const auto& m) { return text.starts_with(m.first); });
    if (mark == marks.end()) {
      pieces.back().text += text[0];
      text.remove_prefix(1);
    } else {
      pieces.back().marker = mark->second;
      pieces.emplace_back();
      text.remove_prefix(mark->first.size());
    }
  }
  return pieces;
}

absl::Status ChatFormat::CheckMessages(std::span<const ChatMessage> messages) const {
  if (messages.empty()) return InvalidArgument("messages is empty");
  bool users_turn = true;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return InvalidArgument("messages[{}].role is '{}'; supported: system, user, assistant", i,
                             role);
    }
    if (!IsValidUtf8(messages[i].content)) {
      return InvalidArgument("messages[{}].content is not UTF-8", i);
    }
    if (role == "system") {
      if (i == 0) continue;
      return InvalidArgument("messages[{}].role is 'system'; only messages[0] may be", i);
    }
    if (row_->alternate && (role == "user") != users_turn) {
      return InvalidArgument(
          "messages[{}].role is '{}'; in the {} format user and assistant take "
          "turns, the user first",
          i, role, row_->name);
    }
    users_turn = !users_turn;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> ChatFormat::Render(
    std::span<const ChatMessage> messages) const {
  FACET_RETURN_IF_ERROR(CheckMessages(messages));
  std::string_view system = row_->default_system;
  bool has_system = row_->always_system || !system.empty();
  if (messages[0].role == "system") {
    system = Content(messages[0]);
    // Inside a user's turn an empty one would leave only its separator.
    has_system = row_->system_place == SystemPlace::kOwnTurn || !system.empty();
    messages = messages.subspan(1);
  }
  const size_t host = has_system ? SystemHost(messages) : kNowhere;
  if (has_system && host == kNowhere && row_->system_place != SystemPlace::kOwnTurn) {
    return InvalidArgument("messages[0].role is 'system', but no message from the user follows");
  }

  Writer writer(*tokenizer_);
  if (row_->begin_with_bos && tokenizer_->bos().has_value()) writer.AddId(*tokenizer_->bos());
  const auto write = [&](const Turn& turn, std::string_view content) {
    writer.Add(turn.before);
    writer.AddText(content);
    writer.Add(turn.after);
  };
  if (has_system && row_->system_place == SystemPlace::kOwnTurn) write(system_, system);
  for (size_t i = 0; i < messages.size(); ++i) {
    const Turn& turn = messages[i].role == "user" ? user_ : assistant_;
    writer.Add(turn.before);
    if (i == host) write(system_, system);
    writer.AddText(Content(messages[i]));
    writer.Add(turn.after);
  }
  writer.Add(reply_);
  return writer.Finish();
}

std::string_view ChatFormat::Content(const ChatMessage& message) const {
  std::string_view content = message.content;
  if (row_->drop_thoughts && message.role == "assistant") content = WithoutThoughts(content);
  return row_->trim ? TrimWhiteSpace(content) : content;
}

size_t ChatFormat::SystemHost(std::span<const ChatMessage> messages) const {
  size_t host = kNowhere;
  if (row_->system_place == SystemPlace::kOwnTurn) return host;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "user") continue;
    if (host == kNowhere || row_->system_place == SystemPlace::kLastUser) host = i;
  }
  return host;
}

}  // namespace facet
