#ifndef FACET_KERNELS_CPU_CPU_ATTENTION_H_
#define FACET_KERNELS_CPU_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/quantized_rows.h"
#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"
#include "kernels/host/kv_memory.h"

namespace facet {

// Attention of a step's rows, spread over a pool's threads by tiles of queries that share a KV
// head, and where those are too few (long contexts, few sequences) by ranges of keys as well.
// Keeps its scratch memory from call to call. One thread calls it.
class CpuAttention {
 public:
  CpuAttention(const KernelTable& kernels, ThreadPool* pool);

  // qkv: [rows, width]; out: [rows, heads head_dim]. `inputs`, if any, are the rows of `out`: each
  // of their tiles is quantised as soon as it is complete.
  void Run(const AttentionSpec& spec, const StepLayout& layout, KvMemory* kv, const float* qkv,
           float* out, const QuantizedRows* inputs);

 private:
  // Rows of one run by query heads that read the same KV head.
  struct Tile {
    const SequenceRun* run;
    int kv_head;
    int first_head;  // in heads_
    int heads;
    int first_row;  // in the run
    int rows;
    int64_t first_split;
    int64_t last_split;  // exclusive
    int64_t slot = -1;   // where its partial results go, if several jobs share it
    int queries() const { return heads * rows; }
  };
  // A range of a tile's splits.
  struct Job {
    const Tile* tile;
    int64_t begin;
    int64_t end;
  };
  // Where the keys and values of a split lie; those that no query sees lie where any other does.
  struct StoredRows {
    const std::byte* keys[kSplitTokens] = {};
    const std::byte* values[kSplitTokens] = {};
  };
  // What a thread needs for one tile and split.
  struct Scratch {
    AlignedBuffer memory;  // of the following, each at a multiple of 64 bytes
    float *q, *keys, *values, *weights, *out, *total_out;
    float *max, *sum, *total_max, *total_sum;
    std::vector<int> begin, end;
    StoredRows rows[2];  // of a split and of the one that is read next
  };
  // The keys of a split that any query of a tile sees.
  struct KeyRange {
    int64_t begin;
    int64_t end;
  };

  void SizeScratch(int head_dim);
  void CutTiles();
  void CutJobs();
  // Whether a tile reads keys and values as they are stored.
  bool ReadsStored(const Tile& tile) const;
  void RunJob(size_t index, Scratch* scratch);
  void MergeTile(const Tile& tile, Scratch* scratch);
  void GatherQueries(const Tile& tile, Scratch* scratch) const;
  SplitArgs PrepareSplit(const Tile& tile, int64_t split, Scratch* scratch);
  KeyRange KeysOf(const Tile& tile, int64_t split) const;
  void ReadKeys(const Tile& tile, int64_t split, Scratch* scratch) const;
  void LocateKeys(const Tile& tile, int64_t split, StoredRows* rows) const;
  // Has the split's keys and values read where they are, and what comes next prefetched.
  void ReadStored(size_t job, int64_t split, SplitArgs* args, Scratch* scratch) const;
  void WriteTile(const Tile& tile, const Scratch& scratch);
  void CountMissing();
  // Quantises the inputs that have become complete with a tile.
  void QuantizeRowsOf(const Tile& tile);
  static Partials TotalsOf(const Scratch& scratch);
  // Of the partial results of one split of a tile: out, then max and sum per query.
  int64_t slot_floats() const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // by thread
  std::vector<int> heads_;        // grouped by KV head
  int head_groups_ = 0;           // that tiles are made of
  std::vector<Tile> tiles_;
  std::vector<Job> jobs_;
  bool shared_ = false;  // some tile has a slot
  AlignedBuffer slots_;
  int head_dim_ = 0;  // that the scratch memory is sized for
  int dim_ = 0;       // rounded up to 16
  int stride_ = 0;    // of converted keys and values
  // The call in progress.
  const AttentionSpec* spec_ = nullptr;
  const StepLayout* layout_ = nullptr;
  KvMemory* kv_ = nullptr;
  const float* qkv_ = nullptr;
  float* out_ = nullptr;
  const QuantizedRows* inputs_ = nullptr;
  std::vector<int> missing_;  // by tile of inputs: rows x head groups that are not written yet
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_ATTENTION_H_
