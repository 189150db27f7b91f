// Spreads the attention of a batch over the pool: work items are blocks of query rows of one
// sequence and one key-value head, and where those are too few for the threads, single chunks of
// their keys. Both ways do the same operations in the same order for each row, so the results are
// the same bits. Not thread-safe: one plan belongs to one Ops. Keeps its workspaces between calls.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class AttentionPlan {
 public:
  AttentionPlan(const KernelTable& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  void Run(const AttentionArgs& args);

 private:
  // Rows row_begin … row_begin + rows - 1 of a span.
  struct Block {
    const SequenceSpan* span;
    int row_begin;
    int rows;
    int chunks;       // of the row that sees the most keys
    int64_t partial;  // index of its first chunk among all chunks of the batch
  };

  void FindBlocks(const AttentionArgs& args);
  void SizeWorkspaces(int64_t partials);
  AttentionTask TaskOf(const AttentionArgs& args, const Block& block, int group) const;
  AttentionScratch ScratchOf(int thread);
  AttentionPartial PartialAt(int64_t index);
  void Finish(const AttentionArgs& args, const Block& block, int group, const AttentionTask& task,
              const AttentionPartial& total) const;
  void RunWhole(const AttentionArgs& args);
  void RunSplit(const AttentionArgs& args);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Block> blocks_;
  int64_t chunk_count_ = 0;  // over all blocks
  int queries_ = 0;          // most queries of a block: rows * heads of a group
  int groups_ = 0;
  int padded_dim_ = 0;
  std::vector<float> scratch_;
  std::vector<float> partials_;
};

}  // namespace trivium::kernels
