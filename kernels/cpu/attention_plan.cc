#include "kernels/cpu/attention_plan.h"

#include <algorithm>
#include <climits>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

// Whole blocks as items balance well enough when the largest is this part of a thread's share.
constexpr int64_t kItemsPerThread = 4;
// Partial results of single chunks that are kept at a time: 9 MB with a head size of 64.
constexpr int64_t kPassQueries = 32768;
// Merges of a row worth waking another thread for.
constexpr int64_t kMergesPerPart = 256;
// Sequences with a shorter common prefix are attended apart: rows of many sequences need a larger
// workspace. Processor time with all keys in the cache, where sharing saves least (attention_bench,
// apart and together): at 32 common tokens 16 sequences lose 16 %; at 64 they lose 8 % and two gain
// 30 %; at 1,024 they gain 27 %.
constexpr int kLeastSharedTokens = 64;

// Queries that have a chunk in common and are worth laying it out in tiles. Behind 2,048 keys in
// the cache two rows of three heads take 0.7 of the time that they take in float32, eight 0.5,
// sixteen 0.4 (attention_bench, suffix).
constexpr int kLeastTileQueries = 6;

constexpr int64_t kLineFloats = 16;

int64_t LinesOf(int64_t floats) { return (floats + kLineFloats - 1) / kLineFloats; }

int64_t ScratchLines(int64_t queries, int64_t padded_dim) {
  return LinesOf(queries * (padded_dim + kChunkKeys) + kTileKeys * padded_dim);
}

int64_t TileLines(int64_t queries, int64_t head_dim) {
  return AmxScratchBytes(queries, head_dim) / int64_t{sizeof(float) * kLineFloats};
}

int32_t WindowOf(const AttentionArgs& args) {
  return args.window == 0 ? kAllKeys : std::min(args.window, kAllKeys);
}

bool MayJoin(const SequenceSpan& span, int block_rows) {
  return span.shared_tokens >= kLeastSharedTokens && span.row_count <= kBlockRows &&
         block_rows + span.row_count <= kSharedRows;
}

}  // namespace

void AttentionPlan::Run(const AttentionArgs& args) {
  KERNELS_CHECK(args.layout.kv_heads >= 1 && args.heads % args.layout.kv_heads == 0);
  KERNELS_CHECK(args.layout.head_dim >= 1 && args.layout.block_tokens >= 1);
  groups_ = args.layout.kv_heads;
  head_dim_ = args.layout.head_dim;
  padded_dim_ = (head_dim_ + 7) / 8 * 8;
  KERNELS_CHECK(args.window >= 0 && args.softcap >= 0);
  may_use_tiles_ = amx_ != nullptr && AmxHead(head_dim_) && args.softcap == 0;
  FindBlocks(args);
  if (blocks_.empty()) return;
  loaded_rows_.assign(pool_.threads(), {});
  if (FewItemsHoldTheWork()) {
    RunSplit(args);
  } else {
    RunWhole(args);
  }
  if (args.kv_bytes_read == nullptr) return;
  for (const Counter& rows : loaded_rows_)
    *args.kv_bytes_read += rows.value * args.layout.RowWords() * 2 / groups_;
}

void AttentionPlan::FindBlocks(const AttentionArgs& args) {
  const int block_rows = may_use_tiles_ ? kAmxBlockRows : kBlockRows;
  rows_.clear();
  blocks_.clear();
  for (const SequenceSpan& span : args.spans) {
    const bool joins = !blocks_.empty() && MayJoin(span, blocks_.back().rows);
    for (int i = 0; i < span.row_count; ++i) {
      if (i % block_rows == 0 && !joins) {
        blocks_.push_back({static_cast<int>(rows_.size()), 0, {INT_MAX, 0}});
      }
      const int row = span.row_begin + i;
      const int32_t position = args.positions[row];
      const int32_t shared = i == 0 ? span.shared_tokens : kSameSequence;
      KERNELS_CHECK(position < kAllKeys && (i > 0 || shared <= position));
      rows_.push_back({row, position, shared, span.block_table});
      Block& block = blocks_.back();
      block.rows += 1;
      const int first_key = std::max(0, position + 1 - WindowOf(args));
      block.chunks.begin = std::min(block.chunks.begin, first_key / kChunkKeys);
      block.chunks.end = std::max(block.chunks.end, position / kChunkKeys + 1);
    }
  }
  int most_rows = 0;
  chunks_ = {INT_MAX, 0};
  for (const Block& block : blocks_) {
    most_rows = std::max(most_rows, block.rows);
    chunks_.begin = std::min(chunks_.begin, block.chunks.begin);
    chunks_.end = std::max(chunks_.end, block.chunks.end);
  }
  queries_ = most_rows * (args.heads / groups_);
}

bool AttentionPlan::FewItemsHoldTheWork() const {
  int64_t total = 0, largest = 0;
  for (const Block& block : blocks_) {
    total += block.work();
    largest = std::max(largest, block.work());
  }
  return pool_.threads() > 1 && chunks_.end - chunks_.begin > 1 &&
         largest * kItemsPerThread * pool_.threads() > total * groups_;
}

void AttentionPlan::SizeWorkspaces(int64_t partials) {
  const auto scratch = static_cast<size_t>(pool_.threads() * ScratchLines(queries_, padded_dim_));
  if (scratch_.size() < scratch) scratch_.resize(scratch);
  if (may_use_tiles_) {
    const auto tiles = static_cast<size_t>(pool_.threads() * TileLines(queries_, head_dim_));
    if (tiles_.size() < tiles) tiles_.resize(tiles);
  }
  partial_queries_ = partials;
  const auto lines = static_cast<size_t>(LinesOf(partials * (padded_dim_ + 2)));
  if (partials_.size() < lines) partials_.resize(lines);
}

AttentionTask AttentionPlan::TaskOf(const AttentionArgs& args, const Block& block,
                                    int group) const {
  const KvLayout& layout = args.layout;
  AttentionTask task;
  task.rows = rows_.data() + block.row_begin;
  task.row_count = block.rows;
  task.heads = args.heads / groups_;
  task.head_dim = layout.head_dim;
  task.padded_dim = padded_dim_;
  task.q_stride = int64_t{args.heads} * layout.head_dim;
  task.q = args.q + int64_t{group} * task.heads * layout.head_dim;
  const int64_t slice = int64_t{group} * layout.head_dim * (layout.type == KvType::kInt8 ? 1 : 2);
  task.kv_group = reinterpret_cast<const uint8_t*>(args.kv_layer) + slice;
  task.kv_type = layout.type;
  task.scale_offset = layout.ScaleWord(group) * 2 - slice;
  task.block_tokens = layout.block_tokens;
  task.page_bytes = layout.PageBytes();
  task.row_bytes = layout.RowWords() * 2;
  task.values_offset = layout.block_tokens * task.row_bytes;
  task.scale = args.scale;
  task.window = WindowOf(args);
  task.softcap = args.softcap;
  return task;
}

AttentionScratch AttentionPlan::ScratchOf(int thread) {
  float* scores = scratch_[thread * ScratchLines(queries_, padded_dim_)].floats;
  float* tile = scores + int64_t{queries_} * kChunkKeys;
  return {tile + int64_t{kTileKeys} * padded_dim_, scores, tile, &loaded_rows_[thread].value};
}

void AttentionPlan::AttendChunk(const AttentionTask& task, int chunk, int thread,
                                const AttentionPartial& partial) {
  int rest = 0;  // the first row that nothing has attended yet
  for (int row = 0; may_use_tiles_ && row < task.row_count;) {
    int end = row + 1;
    while (end < task.row_count && task.rows[end].shared >= (chunk + 1) * kChunkKeys) ++end;
    if ((end - row) * task.heads >= kLeastTileQueries) {
      AttendRows(task, {rest, row}, false, chunk, thread, partial);
      AttendRows(task, {row, end}, true, chunk, thread, partial);
      rest = end;
    }
    row = end;
  }
  AttendRows(task, {rest, task.row_count}, false, chunk, thread, partial);
}

// On tiles: such as have the chunk in the same pages.
void AttentionPlan::AttendRows(const AttentionTask& task, Rows rows, bool on_tiles, int chunk,
                               int thread, AttentionPartial partial) {
  if (rows.begin == rows.end) return;
  AttentionTask part = task;
  part.rows += rows.begin;
  part.row_count = rows.end - rows.begin;
  const int query = rows.begin * task.heads;
  partial = {partial.out + int64_t{query} * padded_dim_, partial.max + query, partial.sum + query};
  if (!on_tiles) return kernels_.attend_chunk(part, chunk, ScratchOf(thread), partial);
  Line* scratch = &tiles_[thread * TileLines(queries_, task.head_dim)];
  amx_->attend_chunk(part, chunk, reinterpret_cast<uint8_t*>(scratch), &loaded_rows_[thread].value,
                     partial);
}

// Of queries `query` and following ones.
AttentionPartial AttentionPlan::PartialAt(int64_t query) {
  float* out = partials_[0].floats;
  float* max = out + partial_queries_ * padded_dim_;
  return {out + query * padded_dim_, max + query, max + partial_queries_ + query};
}

int64_t AttentionPlan::FirstQuery(const AttentionArgs& args, const Block& block, int group) const {
  return int64_t{block.row_begin} * args.heads +
         int64_t{group} * block.rows * (args.heads / groups_);
}

void AttentionPlan::Finish(const AttentionArgs& args, int group, const AttentionTask& task,
                           const AttentionPartial& total) const {
  const int64_t head = int64_t{group} * task.heads;
  kernels_.finish(task, total, args.out + head * task.head_dim,
                  args.lse == nullptr ? nullptr : args.lse + head, args.heads);
}

template <typename Fn>
void AttentionPlan::Deal(int64_t items, const Fn& fn) {
  pool_.ParallelFor(items, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) fn(item, thread);
  });
}

// One item does all chunks of a block, merging each as it comes.
void AttentionPlan::RunWhole(const AttentionArgs& args) {
  SizeWorkspaces(int64_t{2} * pool_.threads() * queries_);
  Deal(static_cast<int64_t>(blocks_.size()) * groups_, [&](int64_t item, int thread) {
    const AttentionPartial total = PartialAt(int64_t{2} * thread * queries_);
    const AttentionPartial next = PartialAt((int64_t{2} * thread + 1) * queries_);
    const Block& block = blocks_[item / groups_];
    const int group = static_cast<int>(item % groups_);
    const AttentionTask task = TaskOf(args, block, group);
    for (int chunk = block.chunks.begin; chunk < block.chunks.end; ++chunk) {
      AttendChunk(task, chunk, thread, next);
      kernels_.merge_chunk(task, chunk, total, next);
    }
    Finish(args, group, task, total);
  });
}

// One item is one chunk; the merge follows when those of a pass are there.
void AttentionPlan::RunSplit(const AttentionArgs& args) {
  const int64_t queries = static_cast<int64_t>(rows_.size()) * args.heads;
  const int width =
      static_cast<int>(std::clamp<int64_t>(kPassQueries / queries, 1, chunks_.end - chunks_.begin));
  SizeWorkspaces((1 + width) * queries);
  for (int begin = chunks_.begin; begin < chunks_.end; begin += width) {
    const Chunks pass = {begin, std::min(begin + width, chunks_.end)};
    AttendPass(args, pass);
    MergePass(args, pass);
  }
}

// The partial results of the pass's first chunk lie behind the totals, then those of the next.
void AttentionPlan::AttendPass(const AttentionArgs& args, Chunks pass) {
  const int64_t width = pass.end - pass.begin;
  const int64_t queries = static_cast<int64_t>(rows_.size()) * args.heads;
  Deal(static_cast<int64_t>(blocks_.size()) * width * groups_, [&](int64_t item, int thread) {
    const Block& block = blocks_[item / groups_ / width];
    const auto chunk = static_cast<int>(pass.begin + item / groups_ % width);
    const auto group = static_cast<int>(item % groups_);
    if (chunk < block.chunks.begin || chunk >= block.chunks.end) return;
    const AttentionTask task = TaskOf(args, block, group);
    const int64_t slot = 1 + chunk - pass.begin;
    AttendChunk(task, chunk, thread, PartialAt(slot * queries + FirstQuery(args, block, group)));
  });
}

void AttentionPlan::MergePass(const AttentionArgs& args, Chunks pass) {
  const int64_t queries = static_cast<int64_t>(rows_.size()) * args.heads;
  const int64_t grain = std::max<int64_t>(1, kMergesPerPart / (pass.end - pass.begin));
  for (const Block& block : blocks_) {
    const Chunks chunks = {std::max(pass.begin, block.chunks.begin),
                           std::min(pass.end, block.chunks.end)};
    if (chunks.begin >= chunks.end) continue;
    pool_.ParallelFor(block.rows * groups_, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; ++item) {
        const auto row = static_cast<int>(item / groups_), group = static_cast<int>(item % groups_);
        const AttentionTask task = TaskOf(args, {block.row_begin + row, 1, block.chunks}, group);
        const int64_t query = FirstQuery(args, block, group) + int64_t{row} * task.heads;
        const AttentionPartial total = PartialAt(query);
        for (int chunk = chunks.begin; chunk < chunks.end; ++chunk) {
          const int64_t slot = 1 + chunk - pass.begin;
          kernels_.merge_chunk(task, chunk, total, PartialAt(slot * queries + query));
        }
        if (chunks.end == block.chunks.end) Finish(args, group, task, total);
      }
    });
  }
}

}  // namespace trivium::kernels
