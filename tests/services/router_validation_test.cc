// What a router refuses, and how it says so.

#include <gmock/gmock.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>

#include <cmath>
#include <limits>

#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::HasSubstr;

class RouterValidation : public RouterFixture {
 protected:
  void SetUp() override {
    AddLeader(Saying({kA}));
    Start();
  }
  void TearDown() override {
    // Whatever was refused, the service goes on, and no leader has heard of it.
    EXPECT_TRUE(leaders_[0]->submits().empty());
    Answer answer;
    EXPECT_TRUE(Generate(TextRequest(), &answer).ok());
  }
  grpc::Status StatusOfBytes(const std::string& method, const std::string& bytes,
                             std::string* response = nullptr) {
    grpc::GenericStub generic(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer buffer(&slice, 1);
    const auto call = generic.PrepareUnaryCall(&context, method, buffer, &queue);
    call->StartCall();
    grpc::ByteBuffer reply;
    grpc::Status status;
    call->Finish(&reply, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    grpc::Slice joined;
    if (response != nullptr && reply.DumpToSingleSlice(&joined).ok()) {
      response->assign(reinterpret_cast<const char*>(joined.begin()), joined.size());
    }
    return status;
  }
};

struct Case {
  std::function<void(v1::GenerateRequest&)> change;
  grpc::StatusCode code;
  std::string message;
};

TEST_F(RouterValidation, NamesTheFieldAndWhatItMayBe) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  using Request = v1::GenerateRequest;
  const auto invalid = grpc::StatusCode::INVALID_ARGUMENT;
  const std::vector<Case> cases = {
      {[](Request& r) { r.mutable_sampling()->set_temperature(-0.5f); }, invalid,
       "sampling.temperature: -0.5 is outside [0, 100]"},
      {[](Request& r) { r.mutable_sampling()->set_temperature(kNan); }, invalid,
       "sampling.temperature: nan is outside [0, 100]"},
      {[](Request& r) { r.mutable_sampling()->set_top_k(-1); }, invalid,
       "sampling.top_k: -1 is outside [0, 2147483647]"},
      {[](Request& r) { r.mutable_sampling()->set_top_p(1.5f); }, invalid,
       "sampling.top_p: 1.5 is outside (0, 1]"},
      {[](Request& r) { r.mutable_sampling()->set_top_p(0); }, invalid,
       "sampling.top_p: 0 is outside (0, 1]"},
      {[](Request& r) { r.mutable_sampling()->set_min_p(kNan); }, invalid,
       "sampling.min_p: nan is outside [0, 1]"},
      {[](Request& r) { r.mutable_sampling()->set_repetition_penalty(0); }, invalid,
       "sampling.repetition_penalty: 0 is outside (0, 100]"},
      {[](Request& r) { r.mutable_sampling()->set_presence_penalty(-101); }, invalid,
       "sampling.presence_penalty: -101 is outside [-100, 100]"},
      {[](Request& r) { r.mutable_sampling()->set_frequency_penalty(kInf); }, invalid,
       "sampling.frequency_penalty: inf is outside [-100, 100]"},
      {[](Request& r) { (*r.mutable_sampling()->mutable_logit_bias())[kVocabularySize] = 1; },
       invalid, "sampling.logit_bias: token id 271 is outside the vocabulary of 271"},
      {[](Request& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = kInf; }, invalid,
       "sampling.logit_bias[5]: inf is neither a finite number nor -inf"},
      {[](Request& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = kNan; }, invalid,
       "sampling.logit_bias[5]: nan is neither a finite number nor -inf"},
      {[](Request& r) { r.set_n(0); }, invalid, "n: 0 is outside [1, 128]"},
      {[](Request& r) { r.set_n(129); }, invalid, "n: 129 is outside [1, 128]"},
      {[](Request& r) {
         r.set_n(128);
         for (int i = 0; i < 8; ++i) r.add_prompts()->set_text("a");
       },
       invalid, "n: 9 prompts x 128 choices are more than 1024"},
      {[](Request& r) { r.set_max_tokens(0); }, invalid,
       "max_tokens: 0 is outside [1, 2147483647]"},
      {[](Request& r) { r.set_logprobs(21); }, invalid, "logprobs: 21 is outside [0, 20]"},
      {[](Request& r) { r.set_logprobs(-1); }, invalid, "logprobs: -1 is outside [0, 20]"},
      {[](Request& r) { r.set_priority(101); }, invalid, "priority: 101 is outside [-100, 100]"},
      {[](Request& r) { r.set_request_id(std::string(129, 'x')); }, invalid,
       "request_id: 129 bytes, at most 128 are allowed"},
      {[](Request& r) { r.clear_prompts(); }, invalid, "prompts: is empty"},
      {[](Request& r) { r.mutable_prompts(0)->clear_kind(); }, invalid,
       "prompts[0]: has no text, chat or tokens"},
      {[](Request& r) { r.mutable_prompts(0)->set_text(""); }, invalid,
       "prompts[0].text: is empty"},
      {[](Request& r) { r.add_prompts()->mutable_tokens(); }, invalid,
       "prompts[1].tokens.ids: is empty"},
      {[](Request& r) { r.add_prompts()->mutable_tokens()->add_ids(-1); }, invalid,
       "prompts[1].tokens.ids[0]: -1 is outside the vocabulary of 271"},
      {[](Request& r) { r.mutable_prompts(0)->mutable_chat(); }, invalid,
       "prompts[0].chat: messages is empty"},
      {[](Request& r) { r.mutable_prompts(0)->set_text(std::string(kContext - 1, 'a')); }, invalid,
       "prompts[0]: 4096 tokens leave no room for output in the context of 4096 tokens"},
      {[](Request& r) {
         for (int i = 0; i < 257; ++i) r.add_prompts()->set_text("a");
       },
       invalid, "prompts: 258 entries, at most 256 are allowed"},
      {[](Request& r) { r.add_stop_token_ids(kVocabularySize); }, invalid,
       "stop_token_ids[0]: 271 is outside the vocabulary of 271"},
      {[](Request& r) { r.set_model("other"); }, grpc::StatusCode::NOT_FOUND,
       "model: `other` is not served here; `tiny` is"},
      {[](Request& r) { r.GetReflection()->MutableUnknownFields(&r)->AddVarint(77, 1); },
       grpc::StatusCode::UNIMPLEMENTED, "field 77 of GenerateRequest is not known here"},
      {[](Request& r) {
         v1::SamplingParams& s = *r.mutable_sampling();
         s.GetReflection()->MutableUnknownFields(&s)->AddVarint(30, 1);
       },
       grpc::StatusCode::UNIMPLEMENTED, "field 30 of SamplingParams is not known here"},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = TextRequest();
    c.change(request);
    const grpc::Status status = StatusOf(request);
    EXPECT_EQ(status.error_code(), c.code) << c.message;
    EXPECT_EQ(status.error_message(), c.message);
    grpc::ClientContext context;
    v1::CompleteResponse response;
    EXPECT_EQ(stub_->Complete(&context, request, &response).error_message(), c.message);
  }
}

TEST_F(RouterValidation, BoundsStopStrings) {
  const auto status_of = [this](const std::vector<std::string>& stops) {
    v1::GenerateRequest request = TextRequest();
    request.mutable_stop()->Add(stops.begin(), stops.end());
    return StatusOf(request);
  };
  for (const auto& stops : {std::vector<std::string>(33, "x"), {""}, {std::string(1025, 'x')}}) {
    const grpc::Status status = status_of(stops);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("stop"));
  }
}

TEST_F(RouterValidation, RefusesATenantThatIsNoName) {
  for (const std::string& tenant : {std::string(65, 'x'), std::string(""), std::string("a b")}) {
    grpc::ClientContext context;
    context.AddMetadata("facet-tenant", tenant);
    Answer answer;
    const grpc::Status status = Generate(TextRequest(), &answer, context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << tenant;
    EXPECT_THAT(status.error_message(), HasSubstr("facet-tenant"));
  }
}

TEST_F(RouterValidation, RefusesHugePromptsWithoutWork) {
  const grpc::Status long_text = StatusOf(TextRequest(std::string(5 << 20, 'a')));
  EXPECT_EQ(long_text.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(long_text.error_message(), "prompts: 5242880 bytes, at most 4194304 are allowed");
  const grpc::Status huge = StatusOf(TextRequest(std::string(100 << 20, 'a')));
  EXPECT_EQ(huge.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(huge.error_message(), HasSubstr("larger than max"));
  const grpc::Status too_long = StatusOf(TextRequest(std::string(1 << 20, 'b')));
  EXPECT_EQ(too_long.error_message(),
            "prompts[0]: 1048577 tokens leave no room for output in the context of 4096 tokens");
}

TEST_F(RouterValidation, RefusesTextThatIsNotUtf8) {
  const std::string prompt("\x12\x04\x0a\x02\xc3\x28", 6);  // prompts { text: "\xc3(" }
  const grpc::Status status = StatusOfBytes("/facet.v1.Inference/Complete", prompt);
  EXPECT_FALSE(status.ok());
  const grpc::Status junk = StatusOfBytes("/facet.v1.Inference/Complete", "\xff\xff\xff");
  EXPECT_FALSE(junk.ok());
}

TEST_F(RouterValidation, TokenizeAndDetokenizeCheckTheirFields) {
  grpc::ClientContext first, second, third;
  v1::TokenizeRequest tokenize;
  v1::TokenizeResponse tokens;
  EXPECT_EQ(stub_->Tokenize(&first, tokenize, &tokens).error_message(),
            "prompt: has no text, chat or tokens");
  v1::DetokenizeRequest detokenize;
  detokenize.add_ids(kA);
  detokenize.add_ids(999);
  v1::DetokenizeResponse text;
  EXPECT_EQ(stub_->Detokenize(&second, detokenize, &text).error_message(),
            "ids[1]: 999 is outside the vocabulary of 271");
  detokenize.set_model("other");
  EXPECT_EQ(stub_->Detokenize(&third, detokenize, &text).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(RouterValidation, HealthIsServedPerService) {
  const auto health = [this](const std::string& service) {
    std::string response;
    const std::string request =
        "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
    StatusOfBytes("/grpc.health.v1.Health/Check", request, &response);
    return response;
  };
  const std::string serving("\x08\x01", 2), not_serving("\x08\x02", 2);
  EXPECT_EQ(health("facet.v1.Inference"), serving);
  leaders_[0]->Kill();
  ASSERT_TRUE(
      WaitForStatus([](const v1::GetStatusResponse& status) { return ReadyGroups(status) == 0; }));
  EXPECT_EQ(health("facet.v1.Inference"), not_serving);
  EXPECT_EQ(health("facet.v1.Status"), serving);
  leaders_[0]->Start();
}

}  // namespace
}  // namespace facet::testing
