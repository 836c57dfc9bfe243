#include "client/chat.h"

#include <fmt/ostream.h>

#include <istream>
#include <ostream>
#include <string>
#include <utility>

#include "base/status.h"
#include "client/answer.h"
#include "client/resuming_stream.h"

namespace facet {
namespace {

constexpr std::string_view kPrompt = "> ";
constexpr std::string_view kHelp = "/reset forgets the conversation, /exit or Ctrl-D leaves\n";

}  // namespace

ChatSession::ChatSession(const Connection& connection, const ChatOptions& options, std::istream& in,
                         std::ostream& out, std::ostream& err)
    : connection_(connection), options_(options), in_(in), out_(out), err_(err) {
  Reset();
}

void ChatSession::Reset() {
  request_ = options_.request;
  v1::Chat& chat = *request_.add_prompts()->mutable_chat();
  if (options_.system.empty()) return;
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role("system");
  message.set_content(options_.system);
}

bool ChatSession::ReadLine(std::string& line) {
  if (options_.interactive) err_ << kPrompt << std::flush;
  return static_cast<bool>(std::getline(in_, line));
}

absl::Status ChatSession::Run() {
  if (options_.interactive) err_ << kHelp;
  std::string line;
  while (ReadLine(line)) {
    if (line.empty()) continue;
    if (line == "/exit") return absl::OkStatus();
    if (line == "/reset") {
      Reset();
      continue;
    }
    if (line == "/help") {
      err_ << kHelp;
      continue;
    }
    const absl::Status status = Turn(line);
    if (status.ok()) continue;
    if (!options_.interactive) return status;
    fmt::print(err_, "{}\n", MessageOf(status));
  }
  if (options_.interactive) err_ << "\n";
  return absl::OkStatus();
}

absl::Status ChatSession::Turn(const std::string& text) {
  auto& messages = *request_.mutable_prompts(0)->mutable_chat()->mutable_messages();
  v1::ChatMessage& question = *messages.Add();
  question.set_role("user");
  question.set_content(text);

  Answer answer(1, 1);
  ResumingStream stream(connection_, request_, answer);
  {
    std::lock_guard lock(mutex_);
    running_ = &stream;
    interrupted_ = false;
  }
  size_t shown = 0;
  const ClientClock::time_point sent = ClientClock::now();
  absl::Status outcome = stream.Run([&] {
    const std::string_view text_so_far = answer.choice(0).text;
    out_ << text_so_far.substr(std::exchange(shown, text_so_far.size())) << std::flush;
  });
  if (shown > 0 || outcome.ok()) out_ << '\n' << std::flush;
  bool interrupted = false;
  {
    std::lock_guard lock(mutex_);
    running_ = nullptr;
    interrupted = interrupted_;
  }
  if (outcome.ok()) outcome = answer.Outcome();
  if (!outcome.ok() && !interrupted) {
    messages.RemoveLast();
    return outcome;
  }
  v1::ChatMessage& reply = *messages.Add();
  reply.set_role("assistant");
  reply.set_content(answer.choice(0).text);
  fmt::print(err_, "[{}]\n", interrupted ? "interrupted" : DescribeRates(answer, sent));
  return absl::OkStatus();
}

void ChatSession::Interrupt() {
  std::lock_guard lock(mutex_);
  if (running_ != nullptr) {
    interrupted_ = true;
    running_->Cancel();
  } else if (options_.interactive) {
    // The terminal has dropped the line that was being typed.
    err_ << "\n" << kHelp << kPrompt << std::flush;
  }
}

}  // namespace facet
