#ifndef FACET_CLIENT_CHAT_H_
#define FACET_CLIENT_CHAT_H_

#include <iosfwd>
#include <mutex>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/options.h"
#include "client/resuming_stream.h"

namespace facet {

// A conversation: lines of `in` are messages or commands (/reset, /exit), answers go to `out`,
// everything else to `err`.
class ChatSession {
 public:
  ChatSession(const Connection& connection, const ChatOptions& options, std::istream& in,
              std::ostream& out, std::ostream& err);

  // Until /exit or the end of `in`. A turn that fails is reported and forgotten, and the
  // conversation goes on; if `in` is not a person, it ends with the turn's status.
  absl::Status Run();

  // Stops the answer that is coming, if one is; what came of it stays in the conversation.
  // Any thread.
  void Interrupt();

 private:
  bool ReadLine(std::string& line);
  void Reset();
  absl::Status Turn(const std::string& text);

  const Connection& connection_;
  const ChatOptions& options_;
  std::istream& in_;
  std::ostream& out_;
  std::ostream& err_;
  v1::GenerateRequest request_;  // one chat prompt: the conversation so far

  std::mutex mutex_;
  ResumingStream* running_ = nullptr;  // guarded by mutex_
  bool interrupted_ = false;           // guarded by mutex_
};

}  // namespace facet

#endif  // FACET_CLIENT_CHAT_H_
