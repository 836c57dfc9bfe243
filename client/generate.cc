#include "client/generate.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <ostream>

#include "base/status.h"
#include "client/answer.h"
#include "client/resuming_stream.h"

namespace facet {
namespace {

// Shows choices one after the other: the current one as it comes, the next when that has ended.
class OrderedPrinter {
 public:
  OrderedPrinter(const Answer& answer, std::ostream& out, std::ostream& err)
      : answer_(answer), out_(out), err_(err) {}

  // Shows what is new.
  void Show() {
    while (current_ < answer_.choices()) {
      const ChoiceState& choice = answer_.choice(current_);
      ShowText(choice);
      if (!choice.finish) return;
      EndChoice();
      ++current_;
    }
  }

  // The stream is over, with or without the answer's end.
  void End() {
    if (open_) EndChoice();
  }

 private:
  void ShowText(const ChoiceState& choice) {
    if (!open_) {
      open_ = true;
      shown_ = 0;
      if (answer_.choices() > 1) {
        fmt::print(err_, "== prompt {}, choice {}\n", current_ / answer_.n(),
                   current_ % answer_.n());
      }
    }
    if (shown_ == choice.text.size()) return;
    out_ << std::string_view(choice.text).substr(shown_) << std::flush;
    shown_ = choice.text.size();
  }

  void EndChoice() {
    out_ << '\n' << std::flush;
    open_ = false;
  }

  const Answer& answer_;
  std::ostream& out_;
  std::ostream& err_;
  int current_ = 0;
  size_t shown_ = 0;
  bool open_ = false;
};

}  // namespace

absl::Status RunGenerate(const Connection& connection, const GenerateOptions& options,
                         std::ostream& out, std::ostream& err) {
  const int n = std::max(1, options.request.has_n() ? options.request.n() : 1);
  Answer answer(options.request.prompts_size(), n);
  OrderedPrinter printer(answer, out, err);
  const ClientClock::time_point sent = ClientClock::now();
  const absl::Status status = ResumingStream(connection, options.request, answer).Run([&] {
    if (!options.json) printer.Show();
  });
  printer.End();
  // An answer that was cut short, by a deadline say, counts as far as it came.
  if (status.ok() || answer.tokens() > 0) {
    if (options.json) out << ToJson(answer) << std::endl;
    fmt::print(err, "{}\n", DescribeRates(answer, sent));
  }
  FACET_RETURN_IF_ERROR(status);
  return answer.Outcome();
}

}  // namespace facet
