#include "client/bench.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <ostream>
#include <set>
#include <thread>
#include <utility>

#include "base/prng.h"
#include "base/status.h"
#include "client/answer.h"
#include "client/arrivals.h"
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

// The load while it runs. Streams draw request numbers and add their samples at their end.
class Load {
 public:
  Load(const Connection& connection, const BenchOptions& options, int vocabulary_size)
      : connection_(connection),
        options_(options),
        vocabulary_size_(vocabulary_size),
        arrivals_(options.rate, options.seed) {}

  absl::Status WarmUp() {
    BenchSamples samples;
    RunOne(kWarmUp, ClientClock::now(), samples);
    if (samples.completed == 1) return absl::OkStatus();
    return Annotate(warm_up_status_, "the first request failed");
  }

  BenchReport Run(std::ostream& err) {
    const ClientClock::time_point start = start_ = ClientClock::now();
    std::vector<std::thread> streams;
    for (int i = 0; i < options_.streams; ++i) streams.emplace_back([this] { RunStream(); });
    Watch(start, err);
    for (std::thread& stream : streams) stream.join();
    return {Seconds(ClientClock::now() - start), std::move(total_), std::nullopt};
  }

 private:
  // A request that a stream is to send.
  struct Turn {
    uint64_t number;
    ClientClock::time_point due;  // when it arrived; latencies count from here
  };

  // Returns when the next request is due, which is at once without a rate; nothing if it was the
  // last one or the time is up. A stream that comes too late sends at once.
  std::optional<Turn> AwaitTurn() {
    std::unique_lock lock(mutex_);
    if (over_) return std::nullopt;
    Turn turn{next_++, ClientClock::now()};
    if (!options_.duration && turn.number >= static_cast<uint64_t>(options_.requests)) {
      return std::nullopt;
    }
    if (options_.rate <= 0) return turn;
    const std::chrono::duration<double> after(arrivals_.Next());
    turn.due = start_ + std::chrono::duration_cast<ClientClock::duration>(after);
    if (changed_.wait_until(lock, turn.due, [this] { return over_.load(); })) return std::nullopt;
    return turn;
  }

  void RunStream() {
    BenchSamples samples;
    while (const std::optional<Turn> turn = AwaitTurn()) {
      RunOne(turn->number, turn->due, samples);
    }
    std::lock_guard lock(mutex_);
    total_.Merge(std::move(samples));
    ++streams_done_;
    changed_.notify_all();
  }

  void RunOne(uint64_t number, ClientClock::time_point sent, BenchSamples& samples) {
    Answer answer(1, 1);
    ResumingStream stream(connection_, MakeRequest(options_, vocabulary_size_, number), answer,
                          number % connection_.routers.size());
    if (!Register(stream)) return;
    int seen = 0;
    ClientClock::time_point previous;
    if (ClientClock::now() - sent > kLate) ++samples.late;
    absl::Status outcome = stream.Run([&] {
      const int fresh = answer.tokens() - seen;
      if (fresh == 0) return;
      const ClientClock::time_point now = answer.last_token_at();
      // Tokens of one message come at the same time: the reader waited for them once.
      if (seen > 0) samples.itl.push_back(Seconds(now - previous));
      tokens_ += fresh;
      seen = answer.tokens();
      previous = now;
    });
    Unregister(stream);
    if (outcome.ok()) outcome = answer.Outcome();
    Record(answer, outcome, sent, samples);
    if (number == kWarmUp) warm_up_status_ = outcome;
  }

  void Record(const Answer& answer, const absl::Status& outcome, ClientClock::time_point sent,
              BenchSamples& samples) {
    samples.resumptions += answer.resumptions();
    samples.output_tokens += answer.tokens();
    if (const auto first = answer.first_token_at()) {
      samples.prompt_tokens += options_.prompt_tokens;
      samples.ttft.push_back(Seconds(*first - sent));
    }
    if (outcome.ok()) {
      ++samples.completed;
      samples.end_to_end.push_back(Seconds(ClientClock::now() - sent));
      if (answer.tokens() > 1) {
        samples.tpot.push_back(Seconds(answer.last_token_at() - *answer.first_token_at()) /
                               (answer.tokens() - 1));
      }
    } else if (over_ && outcome.code() == absl::StatusCode::kCancelled) {
      ++samples.cut_off;
    } else {
      ++samples.errors[outcome.ToString()];
    }
    ++finished_;
  }

  // False if the time is up already.
  bool Register(ResumingStream& stream) {
    std::lock_guard lock(mutex_);
    if (over_) return false;
    running_.insert(&stream);
    return true;
  }
  void Unregister(ResumingStream& stream) {
    std::lock_guard lock(mutex_);
    running_.erase(&stream);
  }

  // Until all streams are done: shows progress and, when the time is up, cancels what runs.
  void Watch(ClientClock::time_point start, std::ostream& err) {
    std::unique_lock lock(mutex_);
    const auto done = [this] { return streams_done_ == options_.streams; };
    while (!done()) {
      const ClientClock::time_point now = ClientClock::now();
      if (options_.duration && !over_ && now - start >= *options_.duration) {
        over_ = true;
        changed_.notify_all();
        for (ResumingStream* stream : running_) stream->Cancel();
      }
      ClientClock::time_point wake = now + kProgressInterval;
      if (options_.duration && !over_) wake = std::min(wake, start + *options_.duration);
      if (options_.progress) ShowProgress(Seconds(now - start), err);
      changed_.wait_until(lock, wake, done);
    }
    if (options_.progress) err << "\r\x1b[K" << std::flush;
  }

  void ShowProgress(double seconds, std::ostream& err) {
    const int64_t tokens = tokens_;
    fmt::print(err, "\r{:.0f} s: {} requests done, {} tokens, {:.1f} tokens/s\x1b[K", seconds,
               finished_.load(), tokens, seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0);
    err << std::flush;
  }

  const Connection& connection_;
  const BenchOptions& options_;
  const int vocabulary_size_;
  ClientClock::time_point start_;
  std::atomic<int64_t> tokens_{0};
  std::atomic<int> finished_{0};
  std::atomic<bool> over_{false};
  absl::Status warm_up_status_;

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ = 0;                  // guarded by mutex_
  Arrivals arrivals_;                  // guarded by mutex_
  std::set<ResumingStream*> running_;  // guarded by mutex_
  BenchSamples total_;                 // guarded by mutex_
  int streams_done_ = 0;               // guarded by mutex_
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

void BenchSamples::Merge(BenchSamples other) {
  completed += other.completed;
  cut_off += other.cut_off;
  resumptions += other.resumptions;
  late += other.late;
  prompt_tokens += other.prompt_tokens;
  output_tokens += other.output_tokens;
  const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(ttft, other.ttft);
  append(tpot, other.tpot);
  append(itl, other.itl);
  append(end_to_end, other.end_to_end);
  for (const auto& [error, count] : other.errors) errors[error] += count;
}

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
