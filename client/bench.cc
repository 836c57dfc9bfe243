#include "client/bench.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <ostream>
#include <unordered_map>
#include <utility>

#include "base/prng.h"
#include "base/status.h"
#include "client/answer.h"
#include "client/arrivals.h"
#include "client/event_loop.h"
#include "client/json.h"
#include "client/resuming_stream.h"
#include "client/table.h"

namespace facet {
namespace {

// Control tokens and byte tokens tend to be the first ids of a vocabulary.
constexpr int kFirstIdMax = 512;
constexpr std::chrono::seconds kProgressInterval{1};
constexpr std::chrono::milliseconds kLate{10};
constexpr std::chrono::seconds kProfileMax{3600};  // a bench that dies leaves nothing on for longer
constexpr uint64_t kWarmUp = ~uint64_t{0};         // a request number that no stream reaches

double Seconds(ClientClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

v1::GenerateRequest MakeRequest(const BenchOptions& options, int vocabulary_size, uint64_t number) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  request.set_max_tokens(options.max_tokens);
  request.set_ignore_eos(true);
  if (options.temperature) request.mutable_sampling()->set_temperature(*options.temperature);
  request.set_seed(Mix64(options.seed, number));
  const int first = std::min(kFirstIdMax, vocabulary_size / 2);
  v1::TokenIds& prompt = *request.add_prompts()->mutable_tokens();
  for (int i = 0; i < options.prompt_tokens; ++i) {
    const uint64_t draw = Mix64(request.seed(), static_cast<uint64_t>(i));
    prompt.add_ids(first + static_cast<int>(draw % static_cast<uint64_t>(vocabulary_size - first)));
  }
  return request;
}

absl::StatusOr<int> VocabularySize(const Connection& connection, const std::string& name) {
  v1::ListModelsResponse response;
  FACET_RETURN_IF_ERROR(
      connection.Ask([&](const RouterStubs& router, grpc::ClientContext& context) {
        return router.models->List(&context, {}, &response);
      }));
  for (const v1::ModelInfo& model : response.models()) {
    if (!name.empty() && model.name() != name) continue;
    if (model.vocabulary_size() < 1) return Internal("{}: the vocabulary is empty", model.name());
    return model.vocabulary_size();
  }
  return NotFound("{}", name.empty() ? std::string("no model is served")
                                     : fmt::format("model '{}' is not served", name));
}

// The load while it runs: one thread keeps `streams` requests under way.
class Load {
 public:
  Load(const Connection& connection, const BenchOptions& options, int vocabulary_size)
      : connection_(connection),
        options_(options),
        vocabulary_size_(vocabulary_size),
        arrivals_(options.rate, options.seed) {}

  absl::Status WarmUp() {
    Send({kWarmUp, ClientClock::now()});
    while (!running_.empty()) loop_.RunOne(ClientClock::time_point::max());
    const bool completed = samples_.completed == 1;
    samples_ = {};
    finished_ = tokens_ = 0;
    return completed ? absl::OkStatus() : Annotate(warm_up_status_, "the first request failed");
  }

  BenchReport Run(std::ostream& err) {
    start_ = ClientClock::now();
    ClientClock::time_point show_at = start_ + kProgressInterval;
    const ClientClock::time_point end = options_.duration ? start_ + *options_.duration : kNever;
    DrawNext();
    for (ClientClock::time_point now = start_; !running_.empty() || next_;
         now = ClientClock::now()) {
      if (!over_ && now >= end) CutOff();
      while (next_ && next_->due <= now && HasFreeStream()) SendNext(now);
      if (options_.progress && now >= show_at) {
        ShowProgress(Seconds(now - start_), err);
        show_at = now + kProgressInterval;
      }
      ClientClock::time_point wake = over_ ? kNever : end;
      if (options_.progress) wake = std::min(wake, show_at);
      if (next_ && HasFreeStream()) wake = std::min(wake, next_->due);
      if (!running_.empty() || next_) loop_.RunOne(wake);
    }
    if (options_.progress) err << "\r\x1b[K" << std::flush;
    return {Seconds(ClientClock::now() - start_), std::move(samples_), std::nullopt};
  }

 private:
  static constexpr ClientClock::time_point kNever = ClientClock::time_point::max();

  // A request that is to be sent.
  struct Turn {
    uint64_t number;
    ClientClock::time_point due;  // when it arrives; latencies count from here
  };

  struct Request {
    Request(const Connection& connection, v1::GenerateRequest request, const Turn& turn)
        : sent(turn.due),
          stream(connection, std::move(request), answer, turn.number % connection.routers.size()) {}

    ClientClock::time_point sent;
    Answer answer{1, 1};
    int seen = 0;  // of its tokens, by the last message
    ClientClock::time_point previous;
    ResumingStream stream;
  };

  bool HasFreeStream() const { return std::ssize(running_) < options_.streams; }

  // When the next request is due, which is at once without a rate; nothing after the last one.
  void DrawNext() {
    next_.reset();
    if (!options_.duration && drawn_ >= static_cast<uint64_t>(options_.requests)) return;
    next_ = {drawn_++, start_};
    if (options_.rate <= 0) return;
    const std::chrono::duration<double> after(arrivals_.Next());
    next_->due = start_ + std::chrono::duration_cast<ClientClock::duration>(after);
  }

  void SendNext(ClientClock::time_point now) {
    if (options_.rate <= 0) next_->due = now;
    Send(*next_);
    DrawNext();
  }

  void Send(const Turn& turn) {
    if (ClientClock::now() - turn.due > kLate) ++samples_.late;
    auto made = std::make_unique<Request>(
        connection_, MakeRequest(options_, vocabulary_size_, turn.number), turn);
    Request& request = *made;
    running_.emplace(turn.number, std::move(made));
    request.stream.Start(
        loop_, {[this, &request] { OnMessage(request); },
                [this, number = turn.number](const absl::Status& s) { OnEnd(number, s); }});
  }

  void OnMessage(Request& request) {
    const int fresh = request.answer.tokens() - request.seen;
    if (fresh == 0) return;
    const ClientClock::time_point now = request.answer.last_token_at();
    // Tokens of one message come at the same time: the reader waited for them once.
    if (request.seen > 0) samples_.itl.push_back(Seconds(now - request.previous));
    tokens_ += fresh;
    request.seen += fresh;
    request.previous = now;
  }

  void OnEnd(uint64_t number, const absl::Status& status) {
    const auto request = std::move(running_.extract(number).mapped());
    const absl::Status outcome = status.ok() ? request->answer.Outcome() : status;
    Record(request->answer, outcome, request->sent);
    if (number == kWarmUp) warm_up_status_ = outcome;
  }

  void Record(const Answer& answer, const absl::Status& outcome, ClientClock::time_point sent) {
    samples_.resumptions += answer.resumptions();
    samples_.output_tokens += answer.tokens();
    if (const auto first = answer.first_token_at()) {
      samples_.prompt_tokens += options_.prompt_tokens;
      samples_.ttft.push_back(Seconds(*first - sent));
    }
    if (outcome.ok()) {
      ++samples_.completed;
      samples_.end_to_end.push_back(Seconds(ClientClock::now() - sent));
      if (answer.tokens() > 1) {
        samples_.tpot.push_back(Seconds(answer.last_token_at() - *answer.first_token_at()) /
                                (answer.tokens() - 1));
      }
    } else if (over_ && outcome.code() == absl::StatusCode::kCancelled) {
      ++samples_.cut_off;
    } else {
      ++samples_.errors[outcome.ToString()];
    }
    ++finished_;
  }

  // The time is up: what runs is cancelled, and nothing follows.
  void CutOff() {
    over_ = true;
    next_.reset();
    for (const auto& [number, request] : running_) request->stream.Cancel();
  }

  void ShowProgress(double seconds, std::ostream& err) const {
    fmt::print(err, "\r{:.0f} s: {} requests done, {} tokens, {:.1f} tokens/s\x1b[K", seconds,
               finished_, tokens_, seconds > 0 ? static_cast<double>(tokens_) / seconds : 0.0);
    err << std::flush;
  }

  const Connection& connection_;
  const BenchOptions& options_;
  const int vocabulary_size_;
  Arrivals arrivals_;
  EventLoop loop_;
  ClientClock::time_point start_;
  std::optional<Turn> next_;
  uint64_t drawn_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Request>> running_;  // by number
  bool over_ = false;
  BenchSamples samples_;
  int64_t tokens_ = 0;
  int64_t finished_ = 0;
  absl::Status warm_up_status_;
};

std::string ToTable(const BenchReport& report, const BenchOptions& options) {
  const BenchSamples& samples = report.samples;
  std::string text = options.rate > 0
                         ? fmt::format("{} requests arrive per second; at most ", options.rate)
                         : std::string();
  text += fmt::format(
      "{} streams, {} prompt tokens, {} output tokens; {} requests done, {} cut off, in {:.2f} s\n",
      options.streams, options.prompt_tokens, options.max_tokens, samples.completed,
      samples.cut_off, report.wall_s);
  text += fmt::format(
      "output {:.1f} tokens/s, with prompts {:.1f} tokens/s, {:.2f} requests/s\n\n",
      static_cast<double>(samples.output_tokens) / report.wall_s,
      static_cast<double>(samples.output_tokens + samples.prompt_tokens) / report.wall_s,
      samples.completed / report.wall_s);
  Table table({"MILLISECONDS", "P50", "P90", "P99"});
  const auto add = [&table](const std::string& name, const std::vector<double>& seconds) {
    const Percentiles p = PercentilesOf(seconds);
    table.AddRow({name, fmt::format("{:.2f}", p.p50 * 1e3), fmt::format("{:.2f}", p.p90 * 1e3),
                  fmt::format("{:.2f}", p.p99 * 1e3)});
  };
  add("TTFT", samples.ttft);
  add("TPOT", samples.tpot);
  add("ITL", samples.itl);
  add("END TO END", samples.end_to_end);
  text += table.Render();
  if (samples.resumptions > 0) {
    text += fmt::format("{} streams went on at another router\n", samples.resumptions);
  }
  if (samples.late > 0) {
    text += fmt::format("{} requests were sent 10 ms late or more\n", samples.late);
  }
  for (const auto& [error, count] : samples.errors) {
    text += fmt::format("{} x {}\n", count, error);
  }
  if (report.profile) text += "\n" + ToTable(*report.profile, options.limits);
  return text;
}

std::string ToJson(const BenchReport& report, const BenchOptions& options) {
  const BenchSamples& samples = report.samples;
  JsonWriter json;
  json.BeginObject().Key("streams").Integer(options.streams);
  json.Key("prompt_tokens_per_request").Integer(options.prompt_tokens);
  json.Key("max_tokens").Integer(options.max_tokens).Key("rate").Number(options.rate);
  json.Key("wall_s").Number(report.wall_s);
  json.Key("completed").Integer(samples.completed).Key("cut_off").Integer(samples.cut_off);
  json.Key("output_tokens").Integer(samples.output_tokens);
  json.Key("prompt_tokens").Integer(samples.prompt_tokens);
  json.Key("output_tokens_per_s")
      .Number(static_cast<double>(samples.output_tokens) / report.wall_s);
  json.Key("total_tokens_per_s")
      .Number(static_cast<double>(samples.output_tokens + samples.prompt_tokens) / report.wall_s);
  const auto add = [&json](std::string_view name, const std::vector<double>& seconds) {
    const Percentiles p = PercentilesOf(seconds);
    json.Key(name).BeginObject().Key("p50").Number(p.p50).Key("p90").Number(p.p90);
    json.Key("p99").Number(p.p99).EndObject();
  };
  add("ttft_s", samples.ttft);
  add("tpot_s", samples.tpot);
  add("itl_s", samples.itl);
  add("end_to_end_s", samples.end_to_end);
  json.Key("resumptions").Integer(samples.resumptions).Key("late").Integer(samples.late);
  json.Key("errors").BeginObject();
  for (const auto& [error, count] : samples.errors) json.Key(error).Integer(count);
  json.EndObject();
  if (report.profile) Write(*report.profile, options.limits, json.Key("profile"));
  json.EndObject();
  return json.text() + "\n";
}

// With profiling on already.
absl::StatusOr<BenchReport> RunProfiled(const Connection& connection, Load& load,
                                        std::ostream& err) {
  FACET_RETURN_IF_ERROR(load.WarmUp());
  FACET_ASSIGN_OR_RETURN(const ClusterProfile before, ReadProfile(connection));
  BenchReport report = load.Run(err);
  FACET_ASSIGN_OR_RETURN(const ClusterProfile after, ReadProfile(connection));
  FACET_ASSIGN_OR_RETURN(report.profile, Since(before, after));
  return report;
}

}  // namespace

absl::StatusOr<BenchReport> MeasureBench(const Connection& connection, const BenchOptions& options,
                                         std::ostream& err) {
  FACET_ASSIGN_OR_RETURN(const int vocabulary_size, VocabularySize(connection, options.model));
  Load load(connection, options, vocabulary_size);
  if (!options.profile) {
    FACET_RETURN_IF_ERROR(load.WarmUp());
    return load.Run(err);
  }
  FACET_RETURN_IF_ERROR(SetProfiling(connection, kProfileMax));
  const absl::StatusOr<BenchReport> report = RunProfiled(connection, load, err);
  const absl::Status off = SetProfiling(connection, std::chrono::seconds(0));
  if (report.ok()) FACET_RETURN_IF_ERROR(off);
  return report;
}

absl::Status RunBench(const Connection& connection, const BenchOptions& options, std::ostream& out,
                      std::ostream& err) {
  FACET_ASSIGN_OR_RETURN(const BenchReport report, MeasureBench(connection, options, err));
  out << (options.json ? ToJson(report, options) : ToTable(report, options)) << std::flush;
  int failed = 0;
  for (const auto& [error, count] : report.samples.errors) failed += count;
  if (failed > 0) return Internal("{} requests failed", failed);
  return absl::OkStatus();
}

}  // namespace facet
