#include "kernels/cpu/attention_plan.h"

#include <algorithm>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

// Whole blocks as items balance well enough from this many items a thread.
constexpr int64_t kItemsPerThread = 4;

int64_t ScratchFloats(int64_t queries, int64_t padded_dim) {
  return queries * (padded_dim + kChunkKeys) + kTileKeys * padded_dim;
}

int64_t PartialFloats(int64_t queries, int64_t padded_dim) { return queries * (padded_dim + 2); }

}  // namespace

void AttentionPlan::Run(const AttentionArgs& args) {
  KERNELS_CHECK(args.layout.kv_heads >= 1 && args.heads % args.layout.kv_heads == 0);
  KERNELS_CHECK(args.layout.head_dim >= 1 && args.layout.block_tokens >= 1);
  groups_ = args.layout.kv_heads;
  padded_dim_ = (args.layout.head_dim + 7) / 8 * 8;
  FindBlocks(args);
  if (blocks_.empty()) return;
  const auto items = static_cast<int64_t>(blocks_.size()) * groups_;
  const bool long_rows = chunk_count_ > static_cast<int64_t>(blocks_.size());
  if (pool_.threads() > 1 && items < kItemsPerThread * pool_.threads() && long_rows) {
    RunSplit(args);
  } else {
    RunWhole(args);
  }
}

void AttentionPlan::FindBlocks(const AttentionArgs& args) {
  blocks_.clear();
  chunk_count_ = 0;
  int most_rows = 0;
  for (const SequenceSpan& span : args.spans) {
    const int end = span.row_begin + span.row_count;
    for (int row = span.row_begin; row < end; row += kBlockRows) {
      const int rows = std::min(kBlockRows, end - row);
      const int last = *std::max_element(args.positions + row, args.positions + row + rows);
      const int chunks = last / kChunkKeys + 1;
      blocks_.push_back({&span, row, rows, chunks, chunk_count_});
      chunk_count_ += chunks;
      most_rows = std::max(most_rows, rows);
    }
  }
  queries_ = most_rows * (args.heads / groups_);
}

void AttentionPlan::SizeWorkspaces(int64_t partials) {
  const auto scratch = static_cast<size_t>(pool_.threads() * ScratchFloats(queries_, padded_dim_));
  if (scratch_.size() < scratch) scratch_.resize(scratch);
  const auto floats = static_cast<size_t>(partials * PartialFloats(queries_, padded_dim_));
  if (partials_.size() < floats) partials_.resize(floats);
}

AttentionTask AttentionPlan::TaskOf(const AttentionArgs& args, const Block& block,
                                    int group) const {
  const KvLayout& layout = args.layout;
  AttentionTask task;
  task.heads = args.heads / groups_;
  task.head_dim = layout.head_dim;
  task.padded_dim = padded_dim_;
  task.q_stride = int64_t{args.heads} * layout.head_dim;
  task.q = args.q + block.row_begin * task.q_stride + int64_t{group} * task.heads * layout.head_dim;
  task.positions = args.positions + block.row_begin;
  task.rows = block.rows;
  task.kv_group = args.kv_layer + int64_t{group} * layout.head_dim;
  task.block_table = block.span->block_table;
  task.block_tokens = layout.block_tokens;
  task.page_elems = layout.PageElems();
  task.row_elems = layout.RowElems();
  task.scale = args.scale;
  return task;
}

AttentionScratch AttentionPlan::ScratchOf(int thread) {
  float* q = scratch_.data() + thread * ScratchFloats(queries_, padded_dim_);
  float* scores = q + int64_t{queries_} * padded_dim_;
  return {q, scores, scores + int64_t{queries_} * kChunkKeys};
}

AttentionPartial AttentionPlan::PartialAt(int64_t index) {
  float* out = partials_.data() + index * PartialFloats(queries_, padded_dim_);
  float* max = out + int64_t{queries_} * padded_dim_;
  return {out, max, max + queries_};
}

void AttentionPlan::Finish(const AttentionArgs& args, const Block& block, int group,
                           const AttentionTask& task, const AttentionPartial& total) const {
  float* out =
      args.out + block.row_begin * task.q_stride + int64_t{group} * task.heads * task.head_dim;
  float* lse = args.lse == nullptr
                   ? nullptr
                   : args.lse + int64_t{block.row_begin} * args.heads + int64_t{group} * task.heads;
  kernels_.finish(task, total, out, task.q_stride, lse, args.heads);
}

// One item does all chunks of a block, merging each as it comes. Later blocks of a prompt see more
// keys, so neighbours are dealt out in turn.
void AttentionPlan::RunWhole(const AttentionArgs& args) {
  const int threads = pool_.threads();
  SizeWorkspaces(2 * threads);
  const auto items = static_cast<int64_t>(blocks_.size()) * groups_;
  pool_.ParallelFor(threads, 1, [&](int64_t begin, int64_t end, int thread) {
    const AttentionScratch scratch = ScratchOf(thread);
    const AttentionPartial total = PartialAt(2 * thread), next = PartialAt(2 * thread + 1);
    for (int64_t first = begin; first < end; ++first) {
      for (int64_t item = first; item < items; item += threads) {
        const Block& block = blocks_[item / groups_];
        const int group = static_cast<int>(item % groups_);
        const AttentionTask task = TaskOf(args, block, group);
        kernels_.attend_chunk(task, 0, scratch, total);
        for (int chunk = 1; chunk < block.chunks; ++chunk) {
          kernels_.attend_chunk(task, chunk, scratch, next);
          kernels_.merge_chunk(task, chunk, total, next);
        }
        Finish(args, block, group, task, total);
      }
    }
  });
}

// One item is one chunk; the merge follows when all are there.
void AttentionPlan::RunSplit(const AttentionArgs& args) {
  SizeWorkspaces(chunk_count_ * groups_);
  pool_.ParallelFor(chunk_count_ * groups_, 1, [&](int64_t begin, int64_t end, int thread) {
    const AttentionScratch scratch = ScratchOf(thread);
    auto block = blocks_.begin();
    for (int64_t item = begin; item < end; ++item) {
      while (item / groups_ >= block->partial + block->chunks) ++block;
      const auto chunk = static_cast<int>(item / groups_ - block->partial);
      const AttentionTask task = TaskOf(args, *block, static_cast<int>(item % groups_));
      kernels_.attend_chunk(task, chunk, scratch, PartialAt(item));
    }
  });
  const auto items = static_cast<int64_t>(blocks_.size()) * groups_;
  pool_.ParallelFor(items, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const Block& block = blocks_[item / groups_];
      const int group = static_cast<int>(item % groups_);
      const AttentionTask task = TaskOf(args, block, group);
      const AttentionPartial total = PartialAt(block.partial * groups_ + group);
      for (int chunk = 1; chunk < block.chunks; ++chunk) {
        const AttentionPartial next = PartialAt((block.partial + chunk) * groups_ + group);
        kernels_.merge_chunk(task, chunk, total, next);
      }
      Finish(args, block, group, task, total);
    }
  });
}

}  // namespace trivium::kernels
