// Tokens that stay on the device: the best of a search, or of several ranks' searches, in places of
// the device, where embeddings find them and the host reads them later.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kernels/best_key.h"
#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr int64_t kRows = 700;  // of the head; the table has as many
constexpr int64_t kWidth = 64;
constexpr int kPlaces = 12;
constexpr int kQueriesMax = 4;

// The bits that stand for keys, as a device has them.
std::vector<float> FloatsOf(const std::vector<BestKey>& keys) {
  std::vector<float> floats(keys.size() * kBestKeyFloats);
  std::memcpy(floats.data(), keys.data(), keys.size() * sizeof(BestKey));
  return floats;
}

class DeviceAsked : public testing::Test {
 protected:
  // A device with what it searches and reads.
  struct Loaded {
    Device* device = nullptr;
    std::unique_ptr<Matrix> head, table;
    Floats scratch, best;
  };

  Loaded Load(Device* device) {
    EXPECT_TRUE(device->AllocateTokens(kPlaces).ok());
    return {device, *device->LoadMatrix(head_.source(), nullptr),
            *device->LoadMatrix(table_.source(), nullptr),
            *device->AllocateFloats(kQueriesMax * kRows),
            *device->AllocateFloats(kQueriesMax * kBestKeyFloats)};
  }

  HeadSearch Search(const Loaded& on, const std::vector<float>& x,
                    std::span<const CandidateQuery> queries) {
    HeadSearch search;
    search.head = on.head.get();
    search.x = Upload(*on.device, x);
    search.soft_cap = 3;
    search.slices = &slices_;
    search.queries = queries;
    search.scratch = on.scratch;
    return search;
  }

  // As a group of one does.
  void Ask(const Loaded& on, const HeadSearch& search, std::span<const int32_t> keep) {
    on.device->AskHead(search, on.best);
    on.device->KeepBest(on.best, 1, keep);
  }

  std::vector<float> Embed(const Loaded& on, std::span<const int32_t> rows,
                           int32_t first_token = 0) {
    const auto size = static_cast<int64_t>(rows.size()) * kWidth;
    const Floats out = *on.device->AllocateFloats(size);
    on.device->EmbedRows(*on.table, first_token, rows, 1.25f, out);
    return Download(*on.device, out);
  }

  // What the ranks' keys come to, those of keep.size() rows or more side by side, all of them
  // beside the reference.
  void ExpectKept(const std::vector<BestKey>& all, int ranks, std::span<const int32_t> keep,
                  const std::vector<BestToken>& want) {
    for (const NamedDevice& named : AllDevices()) {
      SCOPED_TRACE(named.name);
      const Loaded on = Load(named.device.get());
      named.device->KeepBest(Upload(*named.device, FloatsOf(all)), ranks, keep);
      std::vector<BestToken> got(keep.size());
      ASSERT_TRUE(named.device->ReadBest(got).ok());
      for (size_t i = 0; i < keep.size(); ++i) {
        EXPECT_EQ(got[i].finite, want[i].finite) << i;
        EXPECT_EQ(got[i].id, want[i].id) << i;
        if (keep[i] < 0) continue;
        const int32_t kept = RowOfKept(keep[i]);
        EXPECT_EQ(
            FirstDifference(Embed(on, std::span(&kept, 1)), Embed(on, std::span(&want[i].id, 1))),
            -1)
            << i;
      }
    }
  }

  // New ones, without places.
  static std::vector<NamedDevice> AllDevices() {
    std::vector<NamedDevice> devices = TestedDevices({1, 3});
    devices.push_back({"reference", 1, MakeReferenceDevice()});
    return devices;
  }

  Random random_{51};
  const TestMatrix head_ = MakeMatrix(TensorType::kQ8_0, kRows, kWidth, 0.1f, random_);
  const TestMatrix table_ = MakeMatrix(TensorType::kQ8_0, kRows, kWidth, 0.1f, random_);
  const VocabularySlices slices_{0, {0, 300, kRows}};
  const std::unique_ptr<Device> oracle_ = MakeReferenceDevice();
  std::vector<NamedDevice> devices_ = AllDevices();
};

// Greedy, noisy and edited rows.
std::vector<CandidateQuery> Queries(size_t rows, std::span<const LogitEdit> edits) {
  std::vector<CandidateQuery> queries(rows);
  for (size_t i = 0; i < rows; ++i) {
    if (i % 2 == 1) {
      queries[i].gumbel = true;
      queries[i].key = 77 + i;
      queries[i].inverse_temperature = 0.6f;
    }
    if (i % 3 == 2) queries[i].edits = edits;
  }
  return queries;
}

// More searches at a time than there are places where answers arrive, of different sizes.
TEST_F(DeviceAsked, TokensComeInOrderAndEmbeddingsFindThem) {
  const LogitEdit edits[] = {{3, 100, 1, 0}, {699, 2, 1.5f, 0.5f}};
  const std::vector<std::vector<int32_t>> places = {{4},          {-1, 11, 0}, {7, 2},
                                                    {5, 6, 8, 9}, {10},        {1}};
  std::vector<std::vector<float>> x;
  std::vector<std::vector<CandidateReply>> want;
  const Loaded oracle = Load(oracle_.get());
  std::vector<int32_t> kept(kPlaces, 0);
  for (int round = 0; round < 3; ++round) {
    for (const std::vector<int32_t>& keep : places) {
      x.push_back(MakeActivations(static_cast<int64_t>(keep.size()), kWidth, random_));
      const std::vector<CandidateQuery> queries = Queries(keep.size(), edits);
      oracle.device->SearchHead(Search(oracle, x.back(), queries), want.emplace_back(keep.size()));
      for (size_t i = 0; i < keep.size(); ++i) {
        if (keep[i] >= 0) kept[static_cast<size_t>(keep[i])] = want.back()[i].best.front().id;
      }
    }
  }
  kept[3] = 0;  // which nobody has kept
  std::vector<int32_t> rows, plain;
  for (int32_t place = kPlaces - 1; place >= 0; --place) {
    rows.push_back(RowOfKept(place));
    plain.push_back(kept[static_cast<size_t>(place)]);
  }
  rows.push_back(17);  // one that the host knows
  plain.push_back(17);

  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    for (size_t s = 0; s < x.size(); ++s) {
      std::vector<int32_t> keep = places[s % places.size()];
      std::vector<CandidateQuery> queries = Queries(keep.size(), edits);
      Ask(on, Search(on, x[s], queries), keep);
      // What was asked no longer needs these.
      keep.assign(keep.size(), 3);
      queries.assign(queries.size(), CandidateQuery());
    }
    EXPECT_EQ(FirstDifference(Embed(on, rows), Embed(oracle, plain)), -1);
    for (const std::vector<CandidateReply>& expected : want) {
      std::vector<BestToken> got(expected.size());
      ASSERT_TRUE(named.device->ReadBest(got).ok());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(got[i].finite);
        EXPECT_EQ(got[i].id, expected[i].best[0].id);
      }
    }
  }
}

// The keys are those of the best candidates, whatever the rest of the search, bit for bit.
TEST_F(DeviceAsked, KeysAreTheBestCandidates) {
  const LogitEdit edits[] = {{3, 100, 1, 0}, {650, -std::numeric_limits<float>::infinity(), 1, 0}};
  const std::vector<CandidateQuery> queries = Queries(kQueriesMax, edits);
  const std::vector<float> x = MakeActivations(kQueriesMax, kWidth, random_);
  const Loaded oracle = Load(oracle_.get());
  std::vector<CandidateReply> replies(kQueriesMax);
  oracle.device->SearchHead(Search(oracle, x, queries), replies);
  std::vector<BestKey> keys;
  for (const CandidateReply& reply : replies) {
    keys.push_back(BestKeyOf(reply.best[0].order, reply.best[0].id));
  }
  for (const NamedDevice& named : devices_) {
    const Loaded on = Load(named.device.get());
    named.device->AskHead(Search(on, x, queries), on.best);
    EXPECT_EQ(FirstDifference(Download(*named.device, on.best), FloatsOf(keys)), -1) << named.name;
  }
}

// --- Several ranks.

// The larger order wins, of equal ones (0 and -0 are) the lower id, on whatever rank; a rank
// without candidates never, one whose logits are not finite always. Ids up to the last that there
// is.
TEST_F(DeviceAsked, TheBestOfAllRanksIsKept) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<BestKey> all = {
      BestKeyOf(1.5f, 3), BestKeyOf(0.0f, 9),  BestKeyOf(-2, 5),       kNoKey,
      BestKeyOf(7, 0),    BestKeyOf(2.5f, 80), BestKeyOf(-0.0f, 8),    kNoKey,
      kNotFiniteKey,      BestKeyOf(7, 1),     BestKeyOf(2.5f, 79),    BestKeyOf(-1, 2),
      BestKeyOf(-3, 1),   BestKeyOf(9, 11),    BestKeyOf(-infinity, 2)};
  const std::vector<int32_t> keep = {2, 11, -1, 0, 5};
  ExpectKept(all, 3, keep, {{true, 79}, {true, 8}, {true, 5}, {false, 0}, {true, 0}});
}

TEST_F(DeviceAsked, AllBannedButTheLowestIdIsStillAToken) {
  const float least = -std::numeric_limits<float>::infinity();
  const int32_t keep[] = {4, 5};
  ExpectKept({BestKeyOf(least, 650), kNoKey, BestKeyOf(least, 640), kNoKey}, 2, keep,
             {{true, 640}, {true, 0}});
}

// Which an exchange may have been made up to.
TEST_F(DeviceAsked, RowsBehindThoseThatAreKeptMeanNothing) {
  const int32_t keep[] = {2, 5};
  const std::vector<BestKey> all = {BestKeyOf(1, 3), BestKeyOf(2, 9), kNotFiniteKey,
                                    BestKeyOf(5, 4), BestKeyOf(0, 8), BestKeyOf(9, 1)};
  ExpectKept(all, 2, keep, {{true, 4}, {true, 9}});
}

// More rows than a block of threads has.
TEST_F(DeviceAsked, ManyRowsOfManyRanks) {
  constexpr int kMany = 300;
  constexpr int kRanks = 5;
  std::vector<BestKey> all;
  for (int i = 0; i < kMany * kRanks; ++i) {
    all.push_back(
        BestKeyOf(static_cast<float>(random_() % 7) - 3, static_cast<int32_t>(random_() % kRows)));
  }
  std::vector<int32_t> keep(kMany, -1);
  keep[kMany - 1] = 6;
  std::vector<BestToken> want;
  for (int row = 0; row < kMany; ++row) {
    BestKey best = kNoKey;
    for (int rank = 0; rank < kRanks; ++rank) best = std::max(best, all[rank * kMany + row]);
    want.push_back(BestTokenOf(best));
  }
  ExpectKept(all, kRanks, keep, want);
}

// A table that has some of the tokens: zeros for the others.
TEST_F(DeviceAsked, ATableWithoutTheTokenGivesZeros) {
  const std::vector<BestKey> tokens = {BestKeyOf(1, 1099), BestKeyOf(1, 1100), BestKeyOf(1, 1799),
                                       BestKeyOf(1, 1800)};
  const int32_t keep[] = {0, 1, 2, 3};
  const int32_t rows[] = {RowOfKept(0), RowOfKept(1), 5, RowOfKept(2), RowOfKept(3)};
  const Loaded oracle = Load(oracle_.get());
  const int32_t plain[] = {0, 5, kRows - 1};
  const std::vector<float> found = Embed(oracle, plain);
  std::vector<float> want(std::size(rows) * kWidth, 0.0f);
  std::copy(found.begin(), found.end(), want.begin() + kWidth);
  for (const NamedDevice& named : devices_) {
    const Loaded on = Load(named.device.get());
    named.device->KeepBest(Upload(*named.device, FloatsOf(tokens)), 1, keep);
    EXPECT_EQ(FirstDifference(Embed(on, rows, 1100), want), -1) << named.name;
  }
}

// Rows that their owner has sent, and rows of tokens that only the devices know, of which every
// rank has sent one: the owner's bits, -0 included. The second rank owns nothing.
TEST_F(DeviceAsked, BroughtRowsAreTheirOwners) {
  constexpr int kWide = 130;
  const std::vector<BestKey> tokens = {BestKeyOf(1, 99), BestKeyOf(1, 100), BestKeyOf(1, 699)};
  const int32_t keep[] = {3, 0, 7};
  const int32_t token_ends[] = {100, 100, 700};
  const int32_t begins[] = {2, 5, 9};
  std::vector<float> x = MakeFloats(12 * kWide, 1, random_);
  x[2 * kWide] = x[10 * kWide + 129] = -0.0f;
  const BroughtRow rows[] = {{1, -1}, {0, 3}, {8, -1}, {1, 0}, {2, 7}, {11, -1}, {0, 1}};
  const int from[] = {1, 2, 8, 10, 11, 11, 2};
  std::vector<float> want;
  for (const int row : from) {
    want.insert(want.end(), x.begin() + row * kWide, x.begin() + (row + 1) * kWide);
  }
  for (const NamedDevice& named : devices_) {
    const Loaded on = Load(named.device.get());
    named.device->KeepBest(Upload(*named.device, FloatsOf(tokens)), 1, keep);
    const Floats out = *named.device->AllocateFloats(std::ssize(want));
    named.device->GatherBrought({Upload(*named.device, x), rows, token_ends, begins}, kWide, out);
    EXPECT_EQ(FirstDifference(Download(*named.device, out), want), -1) << named.name;
  }
}

// --- What becomes of it.

// What is dropped is told to nobody, and what comes next to whom it is for.
TEST_F(DeviceAsked, WhatIsDroppedIsForgotten) {
  const std::vector<CandidateQuery> queries(1);
  const int32_t nowhere = -1, place = 2;
  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    for (int i = 0; i < 3; ++i) {
      Ask(on, Search(on, MakeActivations(1, kWidth, random_), queries), std::span(&nowhere, 1));
    }
    named.device->DropBest();
    const std::vector<float> x = MakeActivations(1, kWidth, random_);
    Ask(on, Search(on, x, queries), std::span(&place, 1));
    std::vector<CandidateReply> at_once(1);
    named.device->SearchHead(Search(on, x, queries), at_once);  // beside it
    std::vector<BestToken> read(1);
    ASSERT_TRUE(named.device->ReadBest(read).ok());
    EXPECT_EQ(read[0].id, at_once[0].best[0].id);
    const int32_t kept = RowOfKept(2);
    EXPECT_EQ(FirstDifference(Embed(on, std::span(&kept, 1)), Embed(on, std::span(&read[0].id, 1))),
              -1);
  }
}

// A step that goes on from logits that are no numbers computes something, and nobody asks what.
TEST_F(DeviceAsked, SomeTokenIsKeptOfWhatIsNotFinite) {
  const std::vector<CandidateQuery> queries(2);
  const int32_t places[] = {6, 7};
  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    std::vector<float> x = MakeActivations(2, kWidth, random_);
    x[kWidth + 5] = std::nanf("");
    Ask(on, Search(on, x, queries), places);
    const int32_t kept = RowOfKept(7);
    EXPECT_EQ(Embed(on, std::span(&kept, 1)).size(), size_t{kWidth});
    std::vector<BestToken> read(2);
    ASSERT_TRUE(named.device->ReadBest(read).ok());
    EXPECT_TRUE(read[0].finite);
    EXPECT_FALSE(read[1].finite);
  }
}

}  // namespace
}  // namespace facet
