// A stream loses its leader at every one of its tokens, once per run, and shows the bytes of the
// undisturbed one each time. Real router and worker processes; a proxy between them cuts the
// session at the token, before or after it was delivered.
//
// FACET_FAILOVER_PROMPTS says how many prompts (50: the whole form).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <thread>

#include "base/status.h"
#include "tests/cluster/answers.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/session_proxy.h"

namespace facet::testing {
namespace {

using ::testing::IsEmpty;

constexpr int kTokens = 40;
constexpr int kLanes = 6;  // routers that work side by side

// A router in front of two proxies of the same leader: when one session is cut, the sequence goes
// on in the other. Both look like groups of one fingerprint.
struct Lane {
  SessionCutter cutter;
  std::vector<std::unique_ptr<SessionProxy>> proxies;
  std::unique_ptr<Process> router;
  std::unique_ptr<Connection> connection;
};

const char* const kBeginnings[] = {"The harbour lay still, and",
                                   "Привет, как",
                                   "日本の首都は",
                                   "Emoji: 😀😃😄",
                                   "def main():\n",
                                   "A list of birds:",
                                   "Dear Sir or Madam,",
                                   "1, 2, 3, 4,",
                                   "The recipe begins with",
                                   "{\"name\":"};

// Every way to choose a token that keeps state, in turn.
v1::GenerateRequest RequestNumber(int number) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text(
      fmt::format("{}{}", kBeginnings[number % std::size(kBeginnings)],
                  number < std::ssize(kBeginnings) ? "" : fmt::format(" {}", number)));
  request.set_max_tokens(kTokens);
  request.set_ignore_eos(true);
  request.set_seed(static_cast<uint64_t>(number) + 1);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(number % 3 == 0 ? 0.0f : 1.0f);
  if (number % 2 == 1) {
    sampling.set_repetition_penalty(1.2f);
    sampling.set_frequency_penalty(0.3f);
  }
  if (number % 4 == 2) sampling.set_top_p(0.9f);
  if (number % 5 != 3) request.set_logprobs(1);
  return request;
}

class Failover : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = ModelPath(kGemmaFile);
    leader_ = "unix:" + folder_.File("leader.sock");
    auto worker = Process::Spawn({Binary("facet-worker"), "--model=" + model_, "--world=1",
                                  "--threads=2", "--kv_tokens=16384", "--packed_cache=off",
                                  "--listen=" + leader_},
                                 folder_.File("worker.log"));
    ASSERT_TRUE(worker.ok()) << worker.status();
    worker_ = std::make_unique<Process>(*std::move(worker));
    for (int i = 0; i < kLanes; ++i) ASSERT_NO_FATAL_FAILURE(AddLane(i));
  }

  // The same answer, cut at `token`. What went wrong, or nothing.
  std::string CutAt(Lane& lane, const RecordedRequest& recorded, int token, bool deliver) {
    lane.cutter.Arm(token, deliver);
    const auto answer = Ask(*lane.connection, recorded.request);
    if (!answer.ok()) return answer.status().ToString();
    if (!lane.cutter.has_cut()) return "was not cut";
    if (answer->resumptions() > 0) return "the router ended the stream";
    return Difference(recorded.answer, *answer);
  }

  std::vector<std::unique_ptr<Lane>> lanes_;

 private:
  static std::string Binary(const std::string& name) { return FACET_BIN_DIR "/" + name; }

  void AddLane(int index) {
    auto lane = std::make_unique<Lane>();
    std::vector<std::string> addresses;
    for (const char side : {'a', 'b'}) {
      addresses.push_back("unix:" + folder_.File(fmt::format("proxy{}{}.sock", index, side)));
      auto proxy = SessionProxy::Start(addresses.back(), leader_, &lane->cutter);
      ASSERT_TRUE(proxy.ok()) << proxy.status();
      lane->proxies.push_back(*std::move(proxy));
    }
    const std::string listen = "unix:" + folder_.File(fmt::format("router{}.sock", index));
    auto router =
        Process::Spawn({Binary("facet-router"), "--model=" + model_,
                        "--leaders=" + addresses[0] + "," + addresses[1], "--listen=" + listen},
                       folder_.File(fmt::format("router{}.log", index)));
    ASSERT_TRUE(router.ok()) << router.status();
    lane->router = std::make_unique<Process>(*std::move(router));
    lane->connection = std::make_unique<Connection>(ConnectionOptions{.endpoints = {listen}});
    lanes_.push_back(std::move(lane));
  }

  TempFolder folder_;
  std::string model_;
  std::string leader_;
  std::unique_ptr<Process> worker_;
};

TEST_F(Failover, AtEveryTokenShowsTheSameBytes) {
  const char* prompts = std::getenv("FACET_FAILOVER_PROMPTS");
  std::vector<RecordedRequest> recorded;
  for (int i = 0; i < (prompts == nullptr ? 5 : std::atoi(prompts)); ++i) {
    const v1::GenerateRequest request = RequestNumber(i);
    auto answer = Ask(*lanes_[0]->connection, request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    recorded.push_back({request.prompts(0).text(), request, *std::move(answer)});
  }
  std::atomic<int> next{0};
  std::mutex mutex;
  std::vector<std::string> failures;
  const auto work = [&](Lane& lane) {
    for (int task; (task = next++) < std::ssize(recorded) * kTokens;) {
      const RecordedRequest& record = recorded[task / kTokens];
      const int token = task % kTokens;
      const bool deliver = (task / kTokens + token) % 2 == 0;
      const std::string failure = CutAt(lane, record, token, deliver);
      if (failure.empty()) continue;
      const std::lock_guard lock(mutex);
      failures.push_back(fmt::format("'{}' cut {} token {}: {}", record.kind,
                                     deliver ? "after" : "before", token, failure));
    }
  };
  std::vector<std::thread> threads;
  for (const auto& lane : lanes_) threads.emplace_back(work, std::ref(*lane));
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, IsEmpty());
}

}  // namespace
}  // namespace facet::testing
