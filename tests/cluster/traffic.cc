#include "tests/cluster/traffic.h"

#include <atomic>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "base/prng.h"
#include "serving/retry_delay.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;

// Ids below tend to be control and byte tokens; every test model has ids up to the second.
constexpr uint64_t kFirstId = 1000;
constexpr uint64_t kIds = 30'000;

double Seconds(ClientClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Exchange Serve(const Connection& connection, const v1::GenerateRequest& request, uint64_t number) {
  const RouterStubs& router = connection.routers.front();
  Answer answer(request.prompts_size(), request.has_n() ? request.n() : 1);
  grpc::ClientContext context;
  connection.Prepare(context, connection.Deadline());
  Exchange exchange{.number = number, .sent = ClientClock::now()};
  const auto reader = router.inference->Generate(&context, request);
  v1::GenerateResponse response;
  absl::Status sound;
  while (sound.ok() && reader->Read(&response)) sound = answer.Add(response, ClientClock::now());
  if (!sound.ok()) context.TryCancel();
  const grpc::Status status = reader->Finish();
  exchange.ended = ClientClock::now();
  exchange.retry_delay = RetryDelayOf(status, context);
  exchange.status = sound.ok() ? Connection::Explain(router, status) : sound;
  if (exchange.status.ok()) exchange.status = answer.Outcome();
  for (const v1::TokenOutput& token : answer.choice(0).tokens) {
    exchange.tokens.push_back(token.id());
  }
  if (const auto& finish = answer.choice(0).finish) {
    exchange.cached_tokens = finish->usage().cached_tokens();
  }
  if (const auto first = answer.first_token_at()) {
    exchange.ttft_s = Seconds(*first - exchange.sent);
    if (answer.tokens() > 1) {
      exchange.tpot_s = Seconds(answer.last_token_at() - *first) / (answer.tokens() - 1);
    }
  }
  return exchange;
}

std::vector<Exchange> RunClosedLoop(const Connection& connection, int streams,
                                    std::chrono::duration<double> duration, const MakeRequest& make,
                                    std::chrono::milliseconds pause) {
  const auto end = ClientClock::now() + std::chrono::duration_cast<ClientClock::duration>(duration);
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::vector<Exchange> all;
  const auto stream = [&] {
    while (ClientClock::now() < end) {
      const uint64_t number = next++;
      Exchange exchange = Serve(connection, make(number), number);
      const milliseconds wait = pause + exchange.retry_delay.value_or(milliseconds(0));
      {
        const std::lock_guard lock(mutex);
        all.push_back(std::move(exchange));
      }
      std::this_thread::sleep_for(wait);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) threads.emplace_back(stream);
  for (std::thread& thread : threads) thread.join();
  return all;
}

std::vector<Exchange> RunOpenLoop(const Connection& connection, double per_second,
                                  std::chrono::duration<double> duration, const MakeRequest& make) {
  const ClientClock::time_point start = ClientClock::now();
  std::list<Exchange> all;  // stays where it is while threads write to it
  std::vector<std::thread> threads;
  for (uint64_t number = 0; number / per_second < duration.count(); ++number) {
    const auto due = std::chrono::duration<double>(number / per_second);
    std::this_thread::sleep_until(start + std::chrono::duration_cast<ClientClock::duration>(due));
    Exchange& exchange = all.emplace_back();
    threads.emplace_back([&exchange, &connection, request = make(number), number] {
      exchange = Serve(connection, request, number);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return {all.begin(), all.end()};
}

std::vector<Exchange> RunAtOnce(const Connection& connection,
                                const std::vector<v1::GenerateRequest>& requests) {
  std::vector<Exchange> all(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { all[i] = Serve(connection, requests[i], i); });
  }
  for (std::thread& thread : threads) thread.join();
  return all;
}

v1::GenerateRequest DrawnRequest(int shared, uint64_t shared_seed, int own, uint64_t seed,
                                 int output_tokens) {
  v1::GenerateRequest request;
  v1::TokenIds& prompt = *request.add_prompts()->mutable_tokens();
  const auto draw = [&](int count, uint64_t from) {
    for (int i = 0; i < count; ++i) {
      prompt.add_ids(static_cast<int32_t>(kFirstId + Mix64(from, static_cast<uint64_t>(i)) % kIds));
    }
  };
  draw(shared, shared_seed);
  draw(own, seed);
  request.set_max_tokens(output_tokens);
  request.set_ignore_eos(true);
  request.set_seed(seed);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

}  // namespace facet::testing
