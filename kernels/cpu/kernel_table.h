// The inner loops that are compiled once for each instruction set, as plain functions on plain
// data.
//
// simd/*.cc implement them with intrinsics; the rest of cpu/ is baseline x86-64 and reaches them
// only through this table, so that no instruction leaks into code that runs on every machine.
// Stateless; safe from any thread on disjoint outputs.
// Invariant: every result element comes from a sequence of operations that depends on its own row,
// weights and keys only, never on how many rows, outputs or tiles share the call.
#pragma once

#include <cstdint>

#include "kernels/cpu/encoder_kernels.h"
#include "kernels/kv_type.h"
#include "kernels/uneven_levels.h"

namespace trivium::kernels {

// Weights lie in panels of eight outputs (packed_matrix.h); the last one is padded with zero
// weights.
inline constexpr int kPanelOutputs = 8;
inline constexpr int kMostFewRows = 4;    // rows that panels are unpacked for as they pass by
inline constexpr int kTileRows = 6;       // of more rows, those that are multiplied together
inline constexpr int kTilePanels = 2;     // and with as many panels
inline constexpr int kQuantBlock = 32;    // inputs whose activations share a scale
inline constexpr int kSuperBlocks = 8;    // blocks of 32 in a super-block
inline constexpr int kLevelOffset = 128;  // makes the levels of IQ4_NL positive

// How the weights of a panel are kept (packed_matrix.h); several formats of the file may share one.
enum class PanelKind : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ2_K,
  kQ3_K,
  kQ8_0,
  kIQ4_NL,
  kQ5_0,
  kQ5_1,
  kQ5_K,
  kQ6_K
};

// A quantised panel: weight = scale * (integer - offset) + minimum.
struct QuantPanel {
  bool nibbles = false;  // integers 0 … 15 beside activations in bytes; otherwise in words
  int bits = 8;          // of an integer beside words: 8 signed, 4 to 6 unsigned
  bool super = false;    // scale and minimum: float16 a super-block times an 8-bit integer a group
  bool minima = false;
  int groups = 1;  // in a block of 32
  int offset = 0;  // in a panel without minima

  // Whether activations need their sums, for the minima or the offset.
  constexpr bool sums() const { return minima || offset != 0; }
  // Of eight outputs: the float16 numbers, the integers, the weights.
  constexpr int wide_scale_bytes() const { return minima ? 32 : 16; }
  constexpr int group_scale_bytes() const { return super ? (minima ? 16 : 8) * groups : 0; }
  constexpr int weight_bytes() const { return nibbles ? 128 : 32 * bits; }
};

// In simd/ only where constants are computed: no copy compiled for one instruction set may reach
// the others.
constexpr QuantPanel QuantPanelOf(PanelKind kind) {
  switch (kind) {
    case PanelKind::kQ4_0:
      return {.nibbles = true, .offset = 8};
    case PanelKind::kQ4_1:
      return {.nibbles = true, .minima = true};
    case PanelKind::kQ4_K:
      return {.nibbles = true, .super = true, .minima = true};
    case PanelKind::kQ2_K:
      return {.nibbles = true, .super = true, .minima = true, .groups = 2};
    case PanelKind::kQ3_K:
      return {.nibbles = true, .super = true, .groups = 2, .offset = 4};
    case PanelKind::kIQ4_NL:
      return {.bits = 4, .offset = kLevelOffset};
    case PanelKind::kQ5_0:
      return {.bits = 5, .offset = 16};
    case PanelKind::kQ5_1:
      return {.bits = 5, .minima = true};
    case PanelKind::kQ5_K:
      return {.bits = 5, .super = true, .minima = true};
    case PanelKind::kQ6_K:
      return {.bits = 6, .super = true, .groups = 2, .offset = 32};
    default:
      return {};
  }
}

// Activations as integers within ±kLevels, one scale for each 32 inputs. Beside nibbles they are
// two bytes, high * 128 + low; the low part of a block is left out (zero, the high one rounded to
// nearest) where the largest activation of the block is less than the root mean square of the
// largest of all blocks in the row: errors of the other blocks decide. Without any low part about
// one greedy token in fifty of a 135 M model changes, with these one in eighty, none of them clear.
inline constexpr int kLowBits = 7;
inline constexpr int kLevels8 = 127 << kLowBits;
inline constexpr int kLevels16 = 127 << 8;

// Words of 32 bits for a bit a block.
constexpr int64_t LowWords(int64_t blocks) { return (blocks + 31) / 32; }

// Rows of activations that lie together, S of them: all of few rows, else kTileRows, the missing
// ones of the last tile zero.
constexpr int64_t SlotsOf(int64_t rows) { return rows <= kMostFewRows ? rows : kTileRows; }

struct QuantisedRows {
  // Four bytes of each row of a tile in turn. For nibbles [tiles, 2, K / 4, S, 4]: the high parts
  // (±127), then the low ones (-64 … 63). For the others [tiles, K / 2, S, 2] of 16 bits.
  const uint8_t* q = nullptr;
  // [tiles, LowWords(K / 32)] in which blocks a row has a low part; nibbles only
  const uint32_t* low_blocks = nullptr;
  const float* scales = nullptr;     // [tiles, K / 32, S]
  const float* sums = nullptr;       // [tiles, K / 32, S] scale * sum of the integers
  const float* half_sums = nullptr;  // [tiles, K / 16, S] the same of each half block
};

// Where one row of a tile goes: the same, from the row's first values on.
struct RowSlot {
  int64_t slots = 1;
  uint8_t* q = nullptr;
  uint32_t* low_blocks = nullptr;  // bits are added
  float* scales = nullptr;
  float* sums = nullptr;
  float* half_sums = nullptr;
};

// y[rows, n] for the panels panel_begin … panel_end - 1. With more than kMostFewRows rows, panels
// go in tiles of kTilePanels from panel_begin on.
struct MatmulTask {
  PanelKind kind = PanelKind::kF32;
  const uint8_t* panels = nullptr;  // the first panel of the matrix
  int64_t panel_bytes = 0;
  int64_t n = 0, k = 0;
  int64_t panel_begin = 0, panel_end = 0;
  int64_t rows = 0;
  const float* x = nullptr;  // [rows, k], for float panels
  QuantisedRows quantised;   // for the others
  float* y = nullptr;        // [rows, n]
};

// Products in bfloat16 on the tiles of AMX.
inline constexpr int kAmxRows = 16;    // rows of activations in a tile
inline constexpr int kAmxInputs = 32;  // inputs of a step; the last one is padded with zeros
inline constexpr int kAmxPanels = 4;   // multiplied together: two tiles of outputs

// y[rows, n] for the panels panel_begin … panel_end - 1, kAmxPanels at a time from panel_begin on.
// With a second matrix of the same kind and shape, y = silu(y) * up_y, half as many panels at a
// time; `narrowed` takes it in the place of y, as x of a product with weights of narrowed_kind. Then
// n is a multiple of kAmxInputs, and rows that do not fill a tile leave the rest of it as it is.
struct BfloatTask {
  PanelKind kind = PanelKind::kF32;
  const uint8_t* panels = nullptr;  // the first panel of the matrix
  int64_t panel_bytes = 0;
  int64_t n = 0, k = 0;
  int64_t panel_begin = 0, panel_end = 0;
  int64_t rows = 0;
  const uint16_t* x = nullptr;  // [tiles of rows, steps, kAmxRows, kAmxInputs], as narrow_rows does
  float* y = nullptr;           // [rows, n]
  const uint8_t* up_panels = nullptr;
  float* up_y = nullptr;  // [rows, n], with anything in it afterwards
  uint16_t* narrowed = nullptr;
  PanelKind narrowed_kind = PanelKind::kF32;
};

// Keys are attended in chunks of this many positions; the chunk borders are multiples of it,
// whatever the batch, so that a row is always the same merge of the same partial results.
inline constexpr int kChunkKeys = 256;
inline constexpr int kTileKeys = 32;    // converted to float32 at a time
inline constexpr int kBlockRows = 16;   // query rows of one sequence that share a conversion
inline constexpr int kSharedRows = 64;  // query rows of sequences with a common prefix

// A row of a KV page.
struct KvRowShape {
  KvType type = KvType::kF16;
  int kv_heads = 0;
  int head_dim = 0;
  int64_t scale_word = 0;  // of kInt8: where the scales begin, in words of two bytes
};

// A query row and its keys.
struct AttentionRow {
  int32_t row = 0;  // in the packed batch
  int32_t position = 0;
  // Leading keys that lie in the same pages as those of the row before it in the task;
  // kSameSequence where all do. Else at most the positions of both, so that both see them.
  int32_t shared = 0;
  const int32_t* block_table = nullptr;
};
inline constexpr int32_t kSameSequence = INT32_MAX;
// Positions are below it, and neither sum nor difference of two such numbers overflows.
inline constexpr int32_t kAllKeys = 1 << 30;

// Rows (at most kSharedRows) and the query heads of one key-value head.
struct AttentionTask {
  const AttentionRow* rows = nullptr;
  int row_count = 0;
  const float* q = nullptr;  // row 0 of the batch, first head of the group; rows are q_stride apart
  int64_t q_stride = 0;      // heads of all groups * head_dim
  int heads = 0;             // query heads of this kv head
  int head_dim = 0;
  int padded_dim = 0;                 // head_dim rounded up to 8
  const uint8_t* kv_group = nullptr;  // this kv head's slice of the first row
  int block_tokens = 0;
  int64_t page_bytes = 0, row_bytes = 0;
  int64_t values_offset = 0;  // bytes from a key to its value
  KvType kv_type = KvType::kF16;
  int64_t scale_offset = 0;  // of kInt8: bytes from the slice to its scale
  float scale = 0;
  int32_t window = kAllKeys;  // keys that a row sees at most, its own included
  float softcap = 0;          // 0: none
};

// Scratch of one thread, with anything in it; sizes in floats.
struct AttentionScratch {
  float* q = nullptr;              // [row_count * heads, padded_dim]
  float* scores = nullptr;         // [kChunkKeys / kTileKeys, row_count * heads, kTileKeys]
  float* tile = nullptr;           // [padded_dim, kTileKeys] keys or [kTileKeys, padded_dim] values
  int64_t* loaded_rows = nullptr;  // grows by the keys and values read, counted where it is done
};

// Of AmxKernels: query rows of a sequence that share a conversion, and the scratch of a thread, in
// whole cache lines.
inline constexpr int kAmxBlockRows = 64;
constexpr bool AmxHead(int head_dim) { return head_dim % 32 == 0; }
constexpr int64_t AmxScratchBytes(int64_t queries, int64_t head_dim) {
  return 2 * head_dim * ((queries + 31) / 32 * 32 + 2 * kChunkKeys) + 32 * 6 * kChunkKeys +
         32 * 32 * 4;
}

// Softmax over some keys, not yet divided: out = sum(exp(s - max) * v), sum = sum(exp(s - max)).
// Query i = place of the row in the task * heads + head.
struct AttentionPartial {
  float* out = nullptr;  // [row_count * heads, padded_dim]
  float* max = nullptr;  // [row_count * heads]
  float* sum = nullptr;  // [row_count * heads]
};

struct AmxKernels {
  // Up to kAmxRows rows to bfloat16, the missing ones zero, each step's inputs in the order that
  // weights of this kind are multiplied in: tile[steps][kAmxRows][kAmxInputs].
  void (*narrow_rows)(PanelKind kind, const float* x, int64_t k, int64_t rows, uint16_t* tile);
  void (*matmul)(const BfloatTask& task);
  // As KernelTable::attend_chunk, for rows that all have the chunk in the same pages, in heads of
  // AmxHead sizes and without a cap of scores, in bfloat16; rows that see no key of the chunk are
  // undefined afterwards. A row that sees a value which is not finite becomes NaN as a whole.
  void (*attend_chunk)(const AttentionTask& task, int chunk, uint8_t* scratch, int64_t* loaded_rows,
                       const AttentionPartial& partial);
};

struct KernelTable {
  // One row to integers, laid out as QuantisedRows says.
  void (*quantise8)(const float* x, int64_t k, const RowSlot& out);
  void (*quantise16)(const float* x, int64_t k, const RowSlot& out);
  void (*matmul)(const MatmulTask& task);

  // Fills `partial` for the rows that see keys of this chunk, leaves the other rows alone.
  void (*attend_chunk)(const AttentionTask& task, int chunk, const AttentionScratch& scratch,
                       const AttentionPartial& partial);
  // Adds the partial of a chunk, none left out, into `total`, for the rows that see it; the first
  // that a row sees replaces it.
  void (*merge_chunk)(const AttentionTask& task, int chunk, const AttentionPartial& total,
                      const AttentionPartial& partial);
  // out (row 0 of the batch, rows q_stride apart) = total.out / total.sum;
  // lse [row of the batch * lse_stride + head] unless null.
  void (*finish)(const AttentionTask& task, const AttentionPartial& total, float* out, float* lse,
                 int64_t lse_stride);

  void (*rms_norm)(const float* x, const float* weight, float eps, int dim, float* out);  // one row
  // One row; cosines and sines of the rope_dim / 2 pairs.
  void (*rope)(float* x, const float* cosines, const float* sines, int heads, int head_dim,
               int rope_dim);
  // One row of keys or values [kv_heads, head_dim] to a page.
  void (*store_kv_row)(const KvRowShape& shape, const float* x, uint16_t* row);
  void (*silu_mul)(float* gate, const float* up, int64_t count);
  void (*add)(float* x, const float* y, int64_t count);
  EncoderKernels encoder;
};

const KernelTable& Avx2Kernels();
const KernelTable& Avx512Kernels();  // with VNNI; the same results bit for bit
const AmxKernels& AmxTileKernels();

}  // namespace trivium::kernels
