// The facet binary itself: flags, streams and exit codes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <limits>
#include <string>

#include "client/options.h"
#include "tests/services/client_fixture.h"

namespace facet::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

class FacetBinary : public ClientTest {
 protected:
  struct Result {
    int exit_code;
    std::string out;  // and stderr, where the command says so
  };
  Result Run(const std::string& arguments) {
    const std::string command =
        "FACET_ENDPOINT=" + router_.address() + " " FACET_BINARY " " + arguments;
    std::FILE* pipe = popen(command.c_str(), "r");
    Result result;
    std::array<char, 4096> buffer;
    while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
      result.out.append(buffer.data(), n);
    }
    result.exit_code = WEXITSTATUS(pclose(pipe));
    return result;
  }
};

TEST_F(FacetBinary, FlagsBecomeTheRequest) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  const Result result =
      Run("generate --temperature 0 --top-k=5 --top_p .5 --min-p 0.25 --repetition-penalty 1.5 "
          "--presence-penalty -1 --frequency-penalty 2 --seed 18446744073709551615 --max-tokens 12 "
          "--n 1 --logprobs 3 --ignore-eos --stop 'a\\,b,c\\n' --model tiny --system short --echo "
          "'How are you?' 2>/dev/null");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "yes\n");
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  const v1::GenerateRequest& request = requests[0];
  EXPECT_EQ(request.model(), "tiny");
  EXPECT_THAT(Turns(request), ElementsAre("system: short", "user: How are you?"));
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0.0f);
  EXPECT_EQ(request.sampling().top_k(), 5);
  EXPECT_EQ(request.sampling().top_p(), 0.5f);
  EXPECT_EQ(request.sampling().min_p(), 0.25f);
  EXPECT_EQ(request.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(request.sampling().presence_penalty(), -1.0f);
  EXPECT_EQ(request.sampling().frequency_penalty(), 2.0f);
  EXPECT_EQ(request.seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(request.max_tokens(), 12);
  EXPECT_EQ(request.n(), 1);
  EXPECT_EQ(request.logprobs(), 3);
  EXPECT_TRUE(request.ignore_eos());
  EXPECT_TRUE(request.echo());
  EXPECT_THAT(request.stop(), ElementsAre("a,b", "c\n"));
}

TEST_F(FacetBinary, WhatIsNotAskedForStaysUnset) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  EXPECT_EQ(Run("generate --raw --prompt=Once 2>/dev/null").exit_code, 0);
  v1::GenerateRequest expected;
  expected.add_prompts()->set_text("Once");
  expected.mutable_sampling();
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  EXPECT_EQ(requests[0].SerializeAsString(), expected.SerializeAsString());
}

TEST_F(FacetBinary, PromptsComeFromStandardInputOrAsTokenIds) {
  router_.SetScript([](auto&, const v1::GenerateRequest& request, Writer& writer) {
    for (int i = 0; i < request.prompts_size(); ++i) {
      writer.Write(Message({Finished(MakeDelta(i, 0, 0, {5}, "yes"))}));
    }
    return grpc::Status::OK;
  });
  const Result result =
      Run("generate --raw --prompt - --token-ids 2,106 2>/dev/null <<END\ntwo\nlines\nEND\n");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "yes\nyes\n");
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  EXPECT_EQ(requests[0].prompts(0).text(), "two\nlines\n");
  EXPECT_THAT(requests[0].prompts(1).tokens().ids(), ElementsAre(2, 106));
}

TEST_F(FacetBinary, ADeadRouterIsPassedOver) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  const std::string endpoints = " --endpoint 127.0.0.1:1," + router_.address() + " ";
  EXPECT_EQ(Run("generate" + endpoints + "hi 2>/dev/null").out, "yes\n");
  EXPECT_EQ(Run("models" + endpoints).exit_code, 0);
  EXPECT_EQ(Run("generate --endpoint 127.0.0.1:1 --retry-s 0 hi 2>/dev/null").exit_code, 1);
}

TEST_F(FacetBinary, ExitCodesTellFailureFromMisuse) {
  router_.SetScript([](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p: is 7");
  });
  Result result = Run("generate --top-p 7 hi 2>&1");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "facet: INVALID_ARGUMENT: sampling.top_p: is 7\n");
  for (const char* misuse :
       {"", "sing", "generate", "status x", "status --n 2", "generate --n x hi",
        "generate --token-ids 1,x", "bench --streams 0", "bench --rate 1",
        "bench --rate -1 --requests 1", "bench --limits 1,2,3", "bench --profile --limits 1,2",
        "bench --profile --limits 1,2,x",
        "bench --requests 1 "
        "--seconds 1",
        "status --watch 0", "models --timeout-s -1", "chat --retry-s -1", "models --endpoint ,",
        "generate --stop 'a\\' hi"}) {
    result = Run(std::string(misuse) + " 2>&1");
    EXPECT_EQ(result.exit_code, 2) << misuse;
    EXPECT_THAT(result.out, AllOf(StartsWith("facet: "), HasSubstr("--help)\n"))) << misuse;
  }
  EXPECT_THAT(Run("status --n 2 2>&1").out, HasSubstr("--n is not a flag of facet status"));
}

TEST_F(FacetBinary, HelpGoesToStdout) {
  EXPECT_THAT(Run("--help 2>/dev/null").out, HasSubstr("\n  bench "));
  for (const CommandHelp& command : Commands()) {
    const Result result = Run(std::string(command.name) + " --help 2>/dev/null");
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.out, StartsWith("facet " + std::string(command.name)));
    for (const std::string_view flag : command.flags) {
      EXPECT_THAT(result.out, HasSubstr("\n  --" + std::string(flag)));
    }
  }
}

}  // namespace
}  // namespace facet::testing
