#include "base/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace facet {
namespace {

TEST(Status, HelpersFormatAMessageUnderTheirCode) {
  const absl::Status status = InvalidArgument("{}: expected [{}, {}]", "blk.3.attn_q", 2048, 256);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MessageOf(status), "blk.3.attn_q: expected [2048, 256]");
  EXPECT_EQ(NotFound("x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Unimplemented("x").code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(FailedPrecondition("x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ResourceExhausted("x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Unavailable("x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DeadlineExceeded("x").code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Internal("x").code(), absl::StatusCode::kInternal);
}

TEST(Status, MessagesMayHoldAnyBytes) {
  const std::string text("a\0b\xff", 4);
  EXPECT_EQ(MessageOf(MakeStatus(absl::StatusCode::kInternal, text)), text);
}

TEST(Status, AnnotatePutsTheContextBeforeTheMessageAndLeavesOkAlone) {
  const absl::Status status = Annotate(NotFound("no such tensor"), "model.gguf");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "model.gguf: no such tensor");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "model.gguf").ok());
}

TEST(Status, ReturnIfErrorReturnsTheErrorAndEvaluatesOnce) {
  int evaluated = 0;
  const auto function = [&](absl::Status given) -> absl::Status {
    FACET_RETURN_IF_ERROR((++evaluated, given));
    return Internal("went on");
  };
  EXPECT_EQ(MessageOf(function(NotFound("stop"))), "stop");
  EXPECT_EQ(MessageOf(function(absl::OkStatus())), "went on");
  EXPECT_EQ(evaluated, 2);
}

absl::StatusOr<std::unique_ptr<int>> Box(int value) {
  if (value < 0) return InvalidArgument("{} is negative", value);
  return std::make_unique<int>(value);
}

absl::StatusOr<int> AddBoxed(int a, int b) {
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<int> first, Box(a));  // moves, never copies
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<int> second, Box(b));
  return *first + *second;
}

TEST(Status, AssignOrReturnMovesTheValueOrReturnsTheError) {
  ASSERT_TRUE(AddBoxed(2, 3).ok());
  EXPECT_EQ(*AddBoxed(2, 3), 5);
  EXPECT_EQ(MessageOf(AddBoxed(2, -3).status()), "-3 is negative");
}

}  // namespace
}  // namespace facet
