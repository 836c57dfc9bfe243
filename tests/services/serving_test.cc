// What both services and the client share, each piece over real sockets, files and signals.

#include <gmock/gmock.h>
#include <grpcpp/channel.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "base/status.h"
#include "serving/address.h"
#include "serving/flags.h"
#include "serving/grpc_channel.h"
#include "serving/grpc_server.h"
#include "serving/grpc_status.h"
#include "serving/log.h"
#include "serving/progress.h"
#include "serving/short_slices.h"
#include "serving/shutdown.h"
#include "tests/base/temp_folder.h"

ABSL_FLAG(int, test_max_tokens, 16, "How many tokens to make.");
ABSL_FLAG(bool, test_stream, false, "Stream the answer.");
ABSL_FLAG(absl::optional<double>, test_temperature, absl::nullopt, "Higher is wilder.");

namespace facet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<CommandLine> Parse(std::vector<std::string> words) {
  words.insert(words.begin(), "program");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return ParseFlags(static_cast<int>(argv.size()), argv.data());
}

TEST(Flags, DashesAndUnderscoresAreTheSame) {
  EXPECT_TRUE(Parse({"--test-max-tokens=5"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_max_tokens), 5);
  EXPECT_TRUE(Parse({"--test_max_tokens", "6"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_max_tokens), 6);
  EXPECT_TRUE(Parse({"-test-max_tokens", "-7"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_max_tokens), -7);
}

TEST(Flags, BooleansNeedNoValueAndCanBeNegated) {
  EXPECT_THAT(Parse({"--test-stream", "left"})->positional, ElementsAre("left"));
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_stream));
  ASSERT_TRUE(Parse({"--no-test-stream"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_stream));
  ASSERT_TRUE(Parse({"--test-stream=true"}).ok());
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_stream));
  ASSERT_TRUE(Parse({"--notest_stream"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_stream));
}

TEST(Flags, AnUnsetOptionalStaysUnset) {
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_temperature).has_value());
  ASSERT_TRUE(Parse({"--test-temperature=0"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_temperature), 0.0);
}

TEST(Flags, PositionalArgumentsKeepTheirOrder) {
  const auto line = Parse({"a", "--test-max_tokens=1", "-", "b", "--", "--not-a-flag"});
  EXPECT_THAT(line->positional, ElementsAre("a", "-", "b", "--not-a-flag"));
  EXPECT_THAT(line->flags, ElementsAre("test_max_tokens"));
}

TEST(Flags, MistakesAreNamed) {
  EXPECT_EQ(MessageOf(Parse({"--test-max-token=5"}).status()),
            "unknown flag --test_max_token; did you mean --test_max_tokens?");
  EXPECT_EQ(MessageOf(Parse({"--zzzzzzzzzzzzzz"}).status()), "unknown flag --zzzzzzzzzzzzzz");
  EXPECT_EQ(MessageOf(Parse({"--test-max-tokens"}).status()), "--test_max_tokens needs a value");
  EXPECT_THAT(MessageOf(Parse({"--test-max-tokens=many"}).status()),
              StartsWith("--test_max_tokens: 'many' is not a valid value"));
}

TEST(Flags, HelpShowsOurFlagsOnly) {
  EXPECT_THAT(DescribeFlags(), AllOf(HasSubstr("--test_max_tokens (default 16)\n      How many"),
                                     Not(HasSubstr("flagfile"))));
  constexpr std::string_view kOne[] = {"test_stream"};
  EXPECT_EQ(DescribeFlags(kOne), "  --test_stream\n      Stream the answer.\n");
}

TEST(FlagsDeathTest, HelpExitsZeroAndMistakesExitTwo) {
  const auto parse = [](std::string word) {
    std::string program = "program";
    char* argv[] = {program.data(), word.data()};
    ParseFlagsOrExit(2, argv, "program: does things", 0);
    std::exit(7);  // not reached
  };
  EXPECT_EXIT(parse("--help"), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(parse("--nonsense"), ::testing::ExitedWithCode(2), "unknown flag --nonsense");
  EXPECT_EXIT(parse("stray"), ::testing::ExitedWithCode(2), "unexpected argument 'stray'");
}

TEST(GrpcServer, TakesAFreePortAndTellsIt) {
  testing::TempFolder folder;
  grpc::ServerBuilder builder;
  auto running =
      StartGrpcServer(builder, {.listen = "127.0.0.1:0", .address_file = folder.File("address")});
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_THAT(running->address, AllOf(StartsWith("127.0.0.1:"), Not("127.0.0.1:0")));
  EXPECT_EQ(ReadAll(folder.File("address")), running->address + "\n");
  const auto soon = std::chrono::system_clock::now() + std::chrono::seconds(10);
  EXPECT_TRUE(MakeChannel(running->address)->WaitForConnected(soon));
  ShutDown(*running->server, std::chrono::milliseconds(0));
}

TEST(GrpcServer, RefusesAPortThatIsInUse) {
  grpc::ServerBuilder builder;
  auto running = StartGrpcServer(builder, {.listen = "127.0.0.1:0"});
  ASSERT_TRUE(running.ok()) << running.status();
  grpc::ServerBuilder other;
  const auto refused = StartGrpcServer(other, {.listen = running->address});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(MessageOf(refused.status()),
            running->address + ": the port is in use by another process");
  ShutDown(*running->server, std::chrono::milliseconds(0));
}

TEST(GrpcServer, NeverTakesOverALiveUnixSocket) {
  testing::TempFolder folder;
  const std::string address = "unix:" + folder.File("socket");
  grpc::ServerBuilder builder;
  auto running = StartGrpcServer(builder, {.listen = address});
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_EQ(running->address, address);
  grpc::ServerBuilder other;
  EXPECT_EQ(MessageOf(StartGrpcServer(other, {.listen = address}).status()),
            address + ": in use by another process");
  ShutDown(*running->server, std::chrono::milliseconds(0));
  EXPECT_FALSE(std::filesystem::exists(folder.File("socket")));
}

TEST(GrpcServer, ExplainsAnAddressThatIsNone) {
  const auto message = [](std::string listen) {
    grpc::ServerBuilder builder;
    return MessageOf(StartGrpcServer(builder, {.listen = std::move(listen)}).status());
  };
  EXPECT_EQ(message("8470"), "8470: not an address; write host:port or unix:/path");
  EXPECT_THAT(message("192.0.2.1:0"), StartsWith("192.0.2.1:0: cannot listen: "));
  EXPECT_THAT(message("unix:" + std::string(200, 'x')), HasSubstr("has 1 to 107 bytes"));
  EXPECT_THAT(message("127.0.0.1:port"), StartsWith("127.0.0.1:port: "));
}

TEST(GrpcStatus, CodesAndMessagesSurviveBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status = MakeStatus(static_cast<absl::StatusCode>(code), "top_p: is 7");
    EXPECT_EQ(static_cast<int>(ToGrpc(status).error_code()), code);
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
}

TEST(GrpcStatus, MessagesAreUtf8) {
  const auto carried = [](std::string message) {
    return ToGrpc(InvalidArgument("{}", message)).error_message();
  };
  EXPECT_EQ(carried("Größe 模型 🙂"), "Größe 模型 🙂");
  EXPECT_EQ(carried("a\xff"
                    "b\xc3"),
            "a?b?");
  EXPECT_EQ(carried("\xe6\xa8"), "??");
}

TEST(AddressFile, AFolderThatIsMissingIsNamed) {
  EXPECT_THAT(MessageOf(WriteAddressFile("/nonexistent/address", "localhost:1")),
              HasSubstr("/nonexistent/address"));
}

TEST(Log, OneLinePerMessageWhateverItHolds) {
  const std::shared_ptr<spdlog::logger> before = spdlog::default_logger();
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(InitLog("facet-test", "info").ok());
  spdlog::info("model '{}'", "a\nforged line");
  spdlog::debug("not shown");
  const std::string log = ::testing::internal::GetCapturedStderr();
  spdlog::set_default_logger(before);
  EXPECT_THAT(log, ::testing::MatchesRegex("....-..-..T..:..:......Z I facet-test: "
                                           "model 'a.x0aforged line'\n"));
}

TEST(Log, AnUnknownLevelIsRefused) {
  EXPECT_THAT(MessageOf(InitLog("facet-test", "loud")), HasSubstr("--log_level is 'loud'"));
}

std::string Shown(bool terminal, const std::vector<int64_t>& updates) {
  std::FILE* out = std::tmpfile();
  {
    Progress progress("loading", 1000000, {.out = out, .terminal = terminal});
    for (const int64_t done : updates) progress.Update(done);
    progress.Finish();
  }
  std::string text(static_cast<size_t>(std::ftell(out)), '\0');
  std::rewind(out);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), out), text.size());
  std::fclose(out);
  return text;
}

TEST(Progress, PlainLinesComeOncePerTenPercent) {
  std::vector<int64_t> updates;
  for (int64_t done = 0; done <= 1000000; done += 1000) updates.push_back(done);
  const std::string text = Shown(false, updates);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10) << text;
  EXPECT_THAT(text, AllOf(StartsWith("loading:  10 %  0 of 1 MB"),
                          HasSubstr("\nloading: 100 %  1 of 1 MB")));
}

TEST(Progress, ABarIsRedrawnInPlaceAndEndsItsLine) {
  const std::string text = Shown(true, {500000, 500001, 2000000});
  EXPECT_THAT(text, AllOf(StartsWith("\rloading [###############...............]  50 %"),
                          HasSubstr("[##############################] 100 %")));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_LE(std::count(text.begin(), text.end(), '\r'), 3) << "redraws are rate-limited";
}

TEST(ShutdownSignalDeathTest, ASignalEndsTheWait) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int signal : {SIGTERM, SIGINT}) {
    const auto wait = [signal] {
      ShutdownSignal shutdown;
      const bool early = shutdown.Requested();
      kill(getpid(), signal);
      shutdown.Wait();
      std::exit(!early && shutdown.Requested() && shutdown.WaitFor(std::chrono::hours(1)) ? 0 : 1);
    };
    EXPECT_EXIT(wait(), ::testing::ExitedWithCode(0), "");
  }
}

TEST(ShutdownSignalDeathTest, ASecondSignalEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto wait = [] {
    ShutdownSignal shutdown;
    kill(getpid(), SIGTERM);
    shutdown.Wait();
    kill(getpid(), SIGTERM);
    while (true) pause();
  };
  EXPECT_EXIT(wait(), ::testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST(ShutdownSignal, AProcessCanAskItself) {
  ShutdownSignal shutdown;
  EXPECT_FALSE(shutdown.WaitFor(std::chrono::milliseconds(0)));
  shutdown.Request();
  EXPECT_TRUE(shutdown.Requested());
  shutdown.Wait();
}

// Of the calling thread, in nanoseconds, as the scheduler says it; 0: it does not.
uint64_t Slice() {
  // The kernel's sched_attr, whose header does not go with <pthread.h>.
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  EXPECT_EQ(syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0), 0);
  return attributes.runtime;
}

TEST(ShortSlices, AreTheThreadsAndThoseOfItsThreads) {
  const uint64_t before = Slice();
  uint64_t after = 0;
  {
    const ShortSlices slices;
    if (before == 0 || Slice() == before) GTEST_SKIP() << "this Linux knows no slices of threads";
    EXPECT_LT(Slice(), before);
    uint64_t inherited = 0;
    std::thread([&] { inherited = Slice(); }).join();
    EXPECT_EQ(inherited, Slice());
  }
  EXPECT_EQ(Slice(), before);
  std::thread([&] { after = Slice(); }).join();
  EXPECT_EQ(after, before);
}

}  // namespace
}  // namespace facet
