#ifndef FACET_ROUTER_TOKENIZER_CHAT_FORMAT_H_
#define FACET_ROUTER_TOKENIZER_CHAT_FORMAT_H_

// How a family's models were taught to see a conversation, as data. The template that a model file
// may carry is a program by a stranger: it is searched for hints, never executed.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "checkpoint/gguf.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// One row of the table in chat_format.cc.
struct TurnFormat;

// Renders conversations for one model. Immutable and thread-safe; the tokenizer must outlive it.
class ChatFormat {
 public:
  // What decides: the model's architecture, its chat template if it has one, and which markers
  // its vocabulary holds. FailedPrecondition "model has no chat format" for models that were
  // never taught one, or one that is not in the table.
  static absl::StatusOr<ChatFormat> Choose(const GgufModel& model, const Tokenizer& tokenizer);
  struct Hints {
    std::string_view architecture;                  // general.architecture
    std::optional<std::string_view> chat_template;  // tokenizer.chat_template
  };
  static absl::StatusOr<ChatFormat> Choose(const Hints& hints, const Tokenizer& tokenizer);

  std::string_view name() const;

  // The prompt that asks for the assistant's next turn. Markers go in as ids, and contents are
  // encoded with special parsing off, so nothing in a message can end its turn.
  // InvalidArgument names messages[i].role, or messages[i].content that is not UTF-8.
  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages) const;

  // Tokens that end the assistant's turn beside Tokenizer::IsEndOfGeneration.
  const std::vector<TokenId>& stop_tokens() const { return stop_tokens_; }

 private:
  // The fixed text around contents, with its markers looked up: text, then perhaps an id.
  struct Piece {
    std::string text;
    std::optional<TokenId> marker;
  };
  using Pieces = std::vector<Piece>;
  struct Turn {
    Pieces before;
    Pieces after;
  };
  class Writer;
  static constexpr size_t kNowhere = ~size_t{0};

  ChatFormat(const TurnFormat& row, const Tokenizer& tokenizer);

  Pieces Compile(std::string_view text) const;
  absl::Status CheckMessages(std::span<const ChatMessage> messages) const;
  std::string_view Content(const ChatMessage& message) const;
  // The index of the message whose turn takes the system prompt in, or kNowhere.
  size_t SystemHost(std::span<const ChatMessage> messages) const;

  const TurnFormat* row_;
  const Tokenizer* tokenizer_;
  Turn system_, user_, assistant_;
  Pieces reply_;  // begins the assistant's next turn
  std::vector<TokenId> stop_tokens_;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_CHAT_FORMAT_H_
