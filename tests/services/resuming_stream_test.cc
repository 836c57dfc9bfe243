// Streams that break off and go on at another router.

#include "client/resuming_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "serving/retry_delay.h"
#include "tests/services/client_fixture.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

const grpc::Status kGone(grpc::StatusCode::UNAVAILABLE, "gone");

v1::GenerateResponse Start(uint64_t seed, std::vector<v1::Delta> deltas = {}) {
  v1::GenerateResponse message = Message(deltas);
  message.set_request_id("r-1");
  message.mutable_start()->set_seed(seed);
  message.mutable_start()->add_prompts()->add_ids(3);
  return message;
}

v1::Delta WithFingerprint(v1::Delta delta) {
  delta.set_fingerprint("f16-1");
  return delta;
}

class ResumingStreamTest : public ::testing::Test {
 protected:
  // These messages, then UNAVAILABLE.
  static GenerateScript Breaks(std::vector<v1::GenerateResponse> messages) {
    return [messages](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer) {
      for (const auto& message : messages) writer.Write(message);
      return kGone;
    };
  }
  Connection Connect(milliseconds limit = kLong) {
    ConnectionOptions options{.endpoints = {first_.address(), second_.address()}};
    options.retry.limit = limit;
    options.retry.backoff_min = milliseconds(1);
    options.retry.backoff_max = milliseconds(4);
    return ConnectTo(std::move(options));
  }
  absl::Status Run(const Connection& connection, int n = 1) {
    request_.set_n(n);
    answer_.emplace(1, n);
    ResumingStream stream(connection, request_, *answer_);
    return stream.Run([this] { ++messages_; });
  }

  ResumingStreamTest() { request_.add_prompts()->set_text("hi"); }

  FakeRouter first_, second_;
  v1::GenerateRequest request_;
  std::optional<Answer> answer_;
  int messages_ = 0;
};

TEST_F(ResumingStreamTest, WhatCameIsToldToTheNextRouter) {
  v1::GenerateResponse begun = Start(7, {WithFingerprint(MakeDelta(0, 0, 0, {5, 6}, "Hel")),
                                         Finished(WithFingerprint(MakeDelta(0, 1, 0, {8}, "x")))});
  begun.add_echo()->set_text("hi");
  first_.SetScript(Breaks({begun, Message({MakeDelta(0, 0, 2, {7}, "")})}));
  second_.Answer({Start(7), Message({Finished(MakeDelta(0, 0, 3, {9}, "lo"))})});
  EXPECT_TRUE(Run(Connect(), 2).ok());
  EXPECT_EQ(answer_->choice(0).text, "Hello");
  EXPECT_EQ(answer_->choice(1).text, "x");
  EXPECT_EQ(answer_->resumptions(), 1);
  EXPECT_TRUE(answer_->complete());
  EXPECT_EQ(messages_, 4);
  EXPECT_FALSE(first_.requests()[0].has_resume());
  EXPECT_FALSE(first_.requests()[0].has_seed());
  ASSERT_THAT(second_.requests(), SizeIs(1));
  const v1::GenerateRequest resumed = second_.requests()[0];
  EXPECT_EQ(resumed.prompts(0).text(), "hi");
  EXPECT_EQ(resumed.seed(), 7u);
  EXPECT_EQ(resumed.request_id(), "r-1");
  EXPECT_THAT(resumed.resume().echoed_prompts(), ElementsAre(0));
  ASSERT_EQ(resumed.resume().choices_size(), 2);
  const v1::ChoiceResume& open = resumed.resume().choices(0);
  EXPECT_THAT(open.tokens(), ElementsAre(5, 6, 7));
  EXPECT_EQ(open.text_bytes(), 3);
  EXPECT_EQ(open.fingerprint(), "f16-1");
  EXPECT_FALSE(open.finished());
  EXPECT_EQ(resumed.resume().choices(1).choice_index(), 1);
  EXPECT_TRUE(resumed.resume().choices(1).finished());
}

TEST_F(ResumingStreamTest, AChoiceThatHasNotBegunIsLeftOut) {
  first_.SetScript(Breaks({Start(7, {MakeDelta(0, 1, 0, {5}, "a")})}));
  second_.Answer({Start(7), Message({Finished(MakeDelta(0, 0, 0, {1}, "b")),
                                     Finished(MakeDelta(0, 1, 1, {2}, "c"))})});
  EXPECT_TRUE(Run(Connect(), 2).ok());
  const v1::GenerateRequest resumed = second_.requests().at(0);
  ASSERT_EQ(resumed.resume().choices_size(), 1);
  EXPECT_EQ(resumed.resume().choices(0).choice_index(), 1);
}

TEST_F(ResumingStreamTest, BreaksAgainAndAgainAreNoneTooMany) {
  std::atomic<int> calls = 0;
  const GenerateScript one_token = [&calls](grpc::ServerContext&,
                                            const v1::GenerateRequest& request, Writer& writer) {
    ++calls;
    const int known =
        request.resume().choices().empty() ? 0 : request.resume().choices(0).tokens_size();
    v1::Delta delta = MakeDelta(0, 0, known, {known}, "x");
    if (known == 49) delta = Finished(std::move(delta));
    writer.Write(Start(7, {delta}));
    return known == 49 ? grpc::Status::OK : kGone;
  };
  first_.SetScript(one_token);
  second_.SetScript(one_token);
  EXPECT_TRUE(Run(Connect()).ok());
  EXPECT_EQ(answer_->choice(0).text, std::string(50, 'x'));
  EXPECT_EQ(answer_->resumptions(), 49);
  EXPECT_EQ(calls, 50);
}

TEST_F(ResumingStreamTest, ALostGoodbyeIsNoLoss) {
  first_.SetScript(Breaks({Start(7, {Finished(MakeDelta(0, 0, 0, {5}, "a"))})}));
  EXPECT_TRUE(Run(Connect()).ok());
  EXPECT_THAT(second_.requests(), SizeIs(0));
}

TEST_F(ResumingStreamTest, ARequestThatWasNotBegunIsAskedAgain) {
  first_.SetScript(Breaks({}));
  second_.Answer({Start(7, {Finished(MakeDelta(0, 0, 0, {5}, "a"))})});
  EXPECT_TRUE(Run(Connect()).ok());
  EXPECT_EQ(second_.requests().at(0).SerializeAsString(),
            first_.requests().at(0).SerializeAsString());
}

TEST_F(ResumingStreamTest, ARequestWithANameIsTakenOver) {
  request_.set_request_id("mine");
  first_.SetScript(Breaks({}));
  second_.Answer({Start(7, {Finished(MakeDelta(0, 0, 0, {5}, "a"))})});
  EXPECT_TRUE(Run(Connect()).ok());
  EXPECT_EQ(second_.requests().at(0).request_id(), "mine");
  EXPECT_TRUE(second_.requests().at(0).has_resume());
  EXPECT_TRUE(second_.requests().at(0).has_seed());
}

TEST_F(ResumingStreamTest, ARefusalWithADelayIsTriedElsewhereAndLater) {
  std::atomic<int> refused = 0;
  const GenerateScript refuse_once = [&refused](grpc::ServerContext& context, auto&,
                                                Writer& writer) {
    if (++refused <= 2) {
      return WithRetryDelay({grpc::StatusCode::RESOURCE_EXHAUSTED, "full"}, milliseconds(30),
                            context);
    }
    writer.Write(Start(7, {Finished(MakeDelta(0, 0, 0, {5}, "a"))}));
    return grpc::Status::OK;
  };
  first_.SetScript(refuse_once);
  second_.SetScript(refuse_once);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(Run(Connect()).ok());
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(30));
  EXPECT_EQ(first_.requests().size() + second_.requests().size(), 3u);
  EXPECT_THAT(second_.requests(), Not(IsEmpty()));
}

TEST_F(ResumingStreamTest, WhatNoRouterWillEverTakeIsNotRetried) {
  for (const auto code : {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::RESOURCE_EXHAUSTED,
                          grpc::StatusCode::DEADLINE_EXCEEDED, grpc::StatusCode::INTERNAL}) {
    first_.SetScript([code](auto&, auto&, auto&) { return grpc::Status(code, "no"); });
    EXPECT_EQ(static_cast<int>(Run(Connect()).code()), code);
  }
  EXPECT_THAT(second_.requests(), SizeIs(0));
}

TEST_F(ResumingStreamTest, TheSearchForARouterHasAnEnd) {
  first_.SetScript(Breaks({}));
  second_.SetScript(Breaks({}));
  milliseconds limit(25);
  size_t asked = 0;
  do {  // until the time is enough to ask each of them twice
    limit *= 2;
    asked = first_.requests().size() + second_.requests().size();
    const absl::Status status = Run(Connect(limit));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(MessageOf(status), HasSubstr("gone"));
    asked = first_.requests().size() + second_.requests().size() - asked;
  } while (asked < 4 && limit < kLong);
  EXPECT_GE(asked, 4u);
}

TEST_F(ResumingStreamTest, RetriesCanBeOff) {
  first_.SetScript(Breaks({Start(7)}));
  EXPECT_EQ(Run(Connect(milliseconds(0))).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second_.requests(), SizeIs(0));
}

TEST_F(ResumingStreamTest, ARouterThatContinuesSomethingElseIsFoundOut) {
  const auto outcome = [this](v1::GenerateResponse second) {
    first_.SetScript(Breaks({Start(7, {MakeDelta(0, 0, 0, {5}, "a")})}));
    second_.Answer({std::move(second)});
    return Run(Connect()).ToString();
  };
  EXPECT_THAT(outcome(Start(8)), HasSubstr("seed 8 instead of 7"));
  v1::GenerateResponse other = Start(7);
  other.mutable_start()->add_prompts();
  EXPECT_THAT(outcome(other), HasSubstr("other prompt tokens"));
  EXPECT_THAT(outcome(Start(7, {MakeDelta(0, 0, 0, {5}, "a")})),
              HasSubstr("offset 0 where 1 tokens had come"));
}

TEST_F(ResumingStreamTest, CancelEndsTheSearch) {
  first_.SetScript(Breaks({}));
  second_.SetScript(Breaks({}));
  const Connection connection = Connect();
  Answer answer(1, 1);
  ResumingStream stream(connection, request_, answer);
  absl::Status status;
  std::thread runner([&] { status = stream.Run([] {}); });
  stream.Cancel();
  runner.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace facet::testing
