// Spreads the attention of a batch over the pool. A block is a few query rows of one sequence, or
// of sequences with a common prefix, which is then read once for all of them; a work item is a
// block and one key-value head, and where a few such items would hold the most work, single chunks
// of their keys. All ways do the same operations in the same order for each row, so the results are
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
  // `amx`: null, or what attends blocks of many rows.
  AttentionPlan(const KernelTable& kernels, const AmxKernels* amx, ThreadPool& pool)
      : kernels_(kernels), amx_(amx), pool_(pool) {}

  void Run(const AttentionArgs& args);

 private:
  struct Chunks {
    int begin, end;
  };
  struct Rows {  // of a task
    int begin, end;
  };
  struct Block {
    int row_begin;  // in rows_
    int rows;
    Chunks chunks;  // from the first key that one of the rows sees to the last
    int64_t work() const { return int64_t{rows} * (chunks.end - chunks.begin); }
  };
  // Vectors must not straddle cache lines.
  struct alignas(64) Line {
    float floats[16];
  };
  // On a cache line of its own.
  struct alignas(64) Counter {
    int64_t value = 0;
  };
  void FindBlocks(const AttentionArgs& args);
  void AttendChunk(const AttentionTask& task, int chunk, int thread,
                   const AttentionPartial& partial);
  void AttendRows(const AttentionTask& task, Rows rows, bool on_tiles, int chunk, int thread,
                  AttentionPartial partial);
  bool FewItemsHoldTheWork() const;
  void SizeWorkspaces(int64_t partials);
  AttentionTask TaskOf(const AttentionArgs& args, const Block& block, int group) const;
  AttentionScratch ScratchOf(int thread);
  AttentionPartial PartialAt(int64_t index);
  int64_t FirstQuery(const AttentionArgs& args, const Block& block, int group) const;
  void Finish(const AttentionArgs& args, int group, const AttentionTask& task,
              const AttentionPartial& total) const;
  void RunWhole(const AttentionArgs& args);
  void RunSplit(const AttentionArgs& args);
  void AttendPass(const AttentionArgs& args, Chunks pass);
  void MergePass(const AttentionArgs& args, Chunks pass);
  template <typename Fn>
  void Deal(int64_t items, const Fn& fn);

  const KernelTable& kernels_;
  const AmxKernels* const amx_;
  ThreadPool& pool_;
  std::vector<AttentionRow> rows_;
  std::vector<Block> blocks_;
  Chunks chunks_;    // of all blocks
  int queries_ = 0;  // most queries of a block: rows * heads of a group
  int groups_ = 0;
  int head_dim_ = 0;
  int padded_dim_ = 0;
  std::vector<Line> scratch_;  // [threads, lines of one]
  bool may_use_tiles_ = false;
  std::vector<Line> tiles_;     // [threads, lines of one] their scratch
  std::vector<Line> partials_;  // room for partial_queries_ sums, maxima and totals
  int64_t partial_queries_ = 0;
  std::vector<Counter> loaded_rows_;  // by thread
};

}  // namespace trivium::kernels
