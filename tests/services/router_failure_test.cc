// Leaders that die, fall silent or misbehave.

#include <gmock/gmock.h>

#include <thread>

#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::HasSubstr;

class RouterFailure : public RouterFixture {};

TEST_F(RouterFailure, AStreamGoesOnInAnotherGroupWhenItsLeaderDies) {
  AddLeader(Letters());
  AddLeader(Letters());
  for (const auto& leader : leaders_) leader->HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(6);
  request.set_max_tokens(40);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  const auto tokens_so_far = [&answer] {
    int tokens = 0;
    for (const auto& [index, choice] : answer.choices) tokens += std::ssize(choice.ids);
    return tokens;
  };
  while (tokens_so_far() < 60 && reader->Read(&response)) answer.Add(response);
  leaders_[0]->Kill();
  ASSERT_TRUE(leaders_[1]->WaitForSubmits(6));
  leaders_[1]->Release();
  while (reader->Read(&response)) answer.Add(response);
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(answer.choices.size(), 6u);
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, 0, index.second), 40));
    EXPECT_EQ(choice.ids.size(), 40u);
  }
  const v1::Submit moved = leaders_[1]->submits().back();
  EXPECT_EQ(moved.prompt_length(), 3);
  EXPECT_EQ(moved.tokens_size(), 13);
  EXPECT_EQ(moved.max_tokens(), 40);
}

TEST_F(RouterFailure, AStreamWaitsForItsOnlyGroupToComeBack) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(30);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  while ((answer.choices.empty() || Only(answer).ids.size() < 10) && reader->Read(&response)) {
    answer.Add(response);
  }
  leader.Kill();
  leader.Release();
  leader.Start();
  while (reader->Read(&response)) answer.Add(response);
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(7, 0, 0), 30));
}

TEST_F(RouterFailure, TokensThatALeaderLeavesOutAreComputedAgain) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(30);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  while ((answer.choices.empty() || Only(answer).ids.size() < 10) && reader->Read(&response)) {
    answer.Add(response);
  }
  leader.SkipTokens(3);
  leader.Release();
  while (reader->Read(&response)) answer.Add(response);
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(7, 0, 0), 30));
  EXPECT_EQ(leader.submits().size(), 2u);
}

TEST_F(RouterFailure, ALeaderThatFallsSilentIsGivenUp) {
  AddLeader(Letters());
  AddLeader(Letters());
  for (const auto& leader : leaders_) leader->HoldAt(2);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  request.set_max_tokens(20);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  answer.Add(response);
  leaders_[0]->Mute();
  for (const auto& leader : leaders_) leader->Release();
  while (reader->Read(&response)) answer.Add(response);
  EXPECT_TRUE(reader->Finish().ok());
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, 0, index.second), 20));
  }
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(0).state() == "down: silent for 2 s";
  }));
}

TEST_F(RouterFailure, ALeaderThatDoesNotSayItsModelIsNotUsed) {
  info_.set_context_tokens(0);
  const FakeLeader stranger({.address = LeaderAddress(0), .model = info_, .script = Letters()});
  options_.dispatcher.leaders.leaders.push_back(LeaderAddress(0));
  Start();
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(0).state() == "down: did not begin with its model";
  }));
}

TEST_F(RouterFailure, ARequestThatKillsGroupsEndsWithInternal) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(0);
  Start();
  Answer answer;
  grpc::Status status;
  std::thread client([&] { status = Generate(TextRequest(), &answer); });
  for (size_t deaths = 1; deaths <= 2; ++deaths) {
    EXPECT_TRUE(leader.WaitForSubmits(deaths));
    leader.Kill();
    leader.Start();
  }
  client.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "2 groups in a row failed while they ran this sequence");
  EXPECT_EQ(Only(answer).finish->reason(), v1::FINISH_REASON_ERROR);
}

TEST_F(RouterFailure, WithoutAGroupARequestIsUnavailable) {
  options_.dispatcher.leaders.leaders = {LeaderAddress(9)};
  options_.dispatcher.core.group_wait_us = 50'000;
  Start();
  Answer answer;
  EXPECT_EQ(Generate(TextRequest(), &answer).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(0).state().starts_with("down: ");
  }));
  EXPECT_EQ(Status().groups_size(), 1);
  EXPECT_EQ(ReadyGroups(Status()), 0);
}

TEST_F(RouterFailure, ALeaderOfAnotherModelIsNotUsed) {
  AddLeader(Letters());
  info_.set_digest(info_.digest() + 1);
  const FakeLeader stranger({.address = LeaderAddress(1), .model = info_, .script = Letters()});
  options_.dispatcher.leaders.leaders.push_back(LeaderAddress(1));
  Start();
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(1).state().find("serves another model") != std::string::npos;
  }));
  Answer answer;
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_max_tokens(2);
  EXPECT_TRUE(Generate(request, &answer).ok());
  EXPECT_TRUE(stranger.submits().empty());
}

TEST_F(RouterFailure, AnOptionThatWorkersRefuseIsUnimplemented) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_logits_digest(true);
  Answer answer;
  const grpc::Status status = Generate(request, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("logits_digest"));
}

}  // namespace
}  // namespace facet::testing
