#include "tests/kernels/head_search.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

VocabularySlices Slices(int64_t rows) { return {1000, {0, rows / 3, rows / 3, rows / 2, rows}}; }

void ExpectSameCandidates(const std::vector<Candidate>& got, const std::vector<Candidate>& expected,
                          const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].id, expected[i].id) << where << " " << i;
    ASSERT_EQ(got[i].order, expected[i].order) << where << " " << i;
    ASSERT_EQ(got[i].processed, expected[i].processed) << where << " " << i;
    ASSERT_EQ(got[i].raw, expected[i].raw) << where << " " << i;
  }
}

void ExpectSameSums(const std::vector<SliceSum>& got, const std::vector<SliceSum>& expected,
                    const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].max, expected[i].max) << where << " " << i;
    ASSERT_EQ(got[i].sum, expected[i].sum) << where << " " << i;
  }
}

void ExpectSame(const CandidateReply& got, const CandidateReply& expected,
                const std::string& where) {
  ASSERT_EQ(got.finite, expected.finite) << where;
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.best, expected.best, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.raw_best, expected.raw_best, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.sums, expected.sums, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.raw_sums, expected.raw_sums, where));
}

}  // namespace

MatrixSource Searched(const TestMatrix& matrix) {
  MatrixSource source = matrix.source();
  source.searched = true;
  return source;
}

Answer Search(Device& device, const MatrixSource& source, const std::vector<float>& x,
              std::span<const CandidateQuery> queries, float soft_cap,
              std::function<void(std::span<float>)> agree) {
  const auto head = *device.LoadMatrix(source, nullptr);
  const auto rows = static_cast<int64_t>(queries.size());
  const VocabularySlices slices = Slices(source.rows);
  HeadSearch search;
  search.head = head.get();
  search.x = Upload(device, x);
  search.soft_cap = soft_cap;
  search.slices = &slices;
  search.queries = queries;
  search.scratch = *device.AllocateFloats(rows * source.rows);
  search.agree = std::move(agree);
  Answer answer;
  answer.replies.resize(queries.size());
  const HeadReads before = device.head_reads();
  device.SearchHead(search, answer.replies);
  const HeadReads after = device.head_reads();
  answer.reads = {after.rows - before.rows, after.screened - before.screened,
                  after.completed - before.completed, after.bytes - before.bytes};
  return answer;
}

HeadReads HeadTest::ExpectEqual(const TestMatrix& matrix, const std::vector<float>& x,
                                std::span<const CandidateQuery> queries, const std::string& what,
                                float soft_cap) {
  const auto reference = MakeReferenceDevice();
  const Answer expected = Search(*reference, Searched(matrix), x, queries, soft_cap);
  HeadReads reads;
  for (const NamedDevice& named : TestedDevices({1, 3})) {
    const Answer answer = Search(*named.device, Searched(matrix), x, queries, soft_cap);
    for (size_t i = 0; i < queries.size(); ++i) {
      ExpectSame(answer.replies[i], expected.replies[i],
                 fmt::format("{}, {}, row {}", named.name, what, i));
    }
    reads.rows += answer.reads.rows;
    reads.screened += answer.reads.screened;
    reads.completed += answer.reads.completed;
  }
  return reads;
}

CandidateQuery Sampled(uint64_t key, float temperature) {
  CandidateQuery query;
  query.gumbel = true;
  query.key = key;
  query.inverse_temperature = 1 / temperature;
  return query;
}

CandidateQuery Top(int count, float temperature) {
  CandidateQuery query;
  query.count = count;
  query.inverse_temperature = 1 / temperature;
  return query;
}

std::vector<LogitEdit> MakeEdits(int64_t rows, Random& random) {
  std::vector<LogitEdit> edits;
  for (int32_t row = 0; row < rows; row += 1 + static_cast<int32_t>(random() % 97)) {
    LogitEdit edit{row, 0, 1, 0};
    if (random() % 2 == 0) edit.bias = random() % 5 == 0 ? -kInfinity : random() % 2 == 0 ? -4 : 3;
    if (random() % 2 == 0) edit.repetition = random() % 2 == 0 ? 1.3f : 0.8f;
    if (random() % 2 == 0) edit.subtract = 0.7f;
    edits.push_back(edit);
  }
  return edits;
}

}  // namespace facet
