#include "kernels/collectives/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <new>
#include <string>

#include "base/status.h"

namespace facet {
namespace {

using ::testing::HasSubstr;

constexpr std::align_val_t kPage{4096};

std::shared_ptr<std::byte> Pages(size_t bytes) {
  return {static_cast<std::byte*>(::operator new(bytes, kPage)),
          [](std::byte* pages) { ::operator delete(pages, kPage); }};
}

// An arena for 3 ranks as its creator leaves it.
class ArenaOpen : public ::testing::Test {
 protected:
  ArenaOpen() { Arena::Create(memory_, 3, kMinSlotBytes, 5); }

  std::string Refusal(size_t bytes, int world = 3, uint64_t nonce = 5) const {
    const auto arena = Arena::Open(memory_, bytes, world, nonce);
    EXPECT_EQ(arena.status().code(), absl::StatusCode::kFailedPrecondition);
    return MessageOf(arena.status());
  }
  template <typename T>
  void Put(size_t offset, T value) {
    std::memcpy(memory_.get() + offset, &value, sizeof(value));
  }

  const size_t bytes_ = Arena::BytesFor(3, kMinSlotBytes);
  std::shared_ptr<std::byte> memory_ = Pages(bytes_);
};

TEST_F(ArenaOpen, SeesWhatWasCreated) {
  const auto arena = Arena::Open(memory_, bytes_, 3, 5);
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(arena->buffer_bytes(), kMinSlotBytes / 2);
  EXPECT_EQ(arena->buffer(2, kRoundStep) + kMinSlotBytes / 2, memory_.get() + bytes_);
}

TEST_F(ArenaOpen, RefusesEachMismatchWithASentence) {
  EXPECT_THAT(Refusal(100), HasSubstr("only 100 bytes"));
  EXPECT_THAT(Refusal(bytes_ - 4096), HasSubstr("do not fit slots of 16384"));
  EXPECT_THAT(Refusal(bytes_ + 4096), HasSubstr("do not fit"));
  EXPECT_THAT(Refusal(bytes_, 4), HasSubstr("is for 3 ranks, this rank expects 4"));
  EXPECT_THAT(Refusal(bytes_, 3, 6), HasSubstr("has nonce 0x5, this rank expects 0x6"));
  Put<uint64_t>(24, ~uint64_t{0});
  EXPECT_THAT(Refusal(bytes_), HasSubstr("do not fit slots of 18446744073709551615"));
  Put<uint32_t>(8, 2);
  EXPECT_THAT(Refusal(bytes_), HasSubstr("layout version 2, this program has 1"));
  Put<uint64_t>(0, 77);
  EXPECT_THAT(Refusal(bytes_), HasSubstr("none of Facet's (magic 0x4d)"));
}

TEST(Arena, KeepsTheFirstFailureAndMarksEveryRank) {
  const Arena arena = Arena::Create(Pages(Arena::BytesFor(2, kMinSlotBytes)), 2, kMinSlotBytes, 0);
  const std::string long_message(10'000, 'x');
  const absl::Status first = arena.Fail(absl::StatusCode::kAborted, long_message);
  EXPECT_EQ(first.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(long_message, HasSubstr(MessageOf(first)));
  EXPECT_GE(MessageOf(first).size(), 400u);
  EXPECT_EQ(arena.Fail(absl::StatusCode::kInternal, "second"), first);
  EXPECT_EQ(arena.Failure(), first);
  arena.EnterRound(1);  // does not hide it
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(arena.rank(rank).rounds.load() & kFailedBit, 1u);
}

TEST(Arena, BuffersOfARankAlternateAndNeverOverlap) {
  const Arena arena = Arena::Create(Pages(Arena::BytesFor(2, kMinSlotBytes)), 2, kMinSlotBytes, 0);
  const uint32_t before_wrap = 0u - kRoundStep;
  EXPECT_NE(arena.buffer(0, before_wrap), arena.buffer(0, before_wrap + kRoundStep));
  EXPECT_EQ(arena.buffer(0, 2), arena.buffer(0, 6));
  EXPECT_EQ(arena.buffer(0, 2) - arena.buffer(0, 4), kMinSlotBytes / 2);
  EXPECT_EQ(arena.buffer(1, 4) - arena.buffer(0, 2), kMinSlotBytes / 2);
}

}  // namespace
}  // namespace facet
