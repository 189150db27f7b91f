// Products in bfloat16 on the tiles of AMX: the weights of 32 outputs are widened into the
// first-level cache as they pass by, once for all rows, so that no copy of them is kept.
//
// A row is one chain of tile products over the inputs for each output, in float32, whatever rows
// share its tile: a result depends on its row and weights alone.
#include "kernels/cpu/simd/amx_tiles.h"
#include "kernels/cpu/simd/widen.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int64_t kStepBytes = 2 * kTileBytes;  // the weights of 32 inputs and 32 outputs
constexpr int kPairRows = 2 * kAmxRows;
constexpr int kHalf = 16;  // outputs of a tile
constexpr int kTileInputs = kAmxRows * kAmxInputs;
// Steps widened together: 128 KiB, which stay in the second-level cache.
constexpr int64_t kBlockSteps = 64;
// With few rows, steps widened while the ones before are multiplied.
constexpr int64_t kFewSteps = 2;

inline void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums of 32 rows or, without `both`, of 16: two halves of 16 outputs.
inline void LoadSums(bool both, const float* const* y, int64_t stride) {
  _tile_loadd(0, y[0], stride * 4);
  _tile_loadd(1, y[1], stride * 4);
  if (!both) return;
  _tile_loadd(2, y[0] + kAmxRows * stride, stride * 4);
  _tile_loadd(3, y[1] + kAmxRows * stride, stride * 4);
}

inline void StoreSums(bool both, float* const* y, int64_t stride) {
  _tile_stored(0, y[0], stride * 4);
  _tile_stored(1, y[1], stride * 4);
  if (!both) return;
  _tile_stored(2, y[0] + kAmxRows * stride, stride * 4);
  _tile_stored(3, y[1] + kAmxRows * stride, stride * 4);
}

// x * sigmoid(x), to 4e-6 of it.
inline __m512 Silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // Below 2^120 its reciprocal is no denormal number.
  const __m512 power =
      _mm512_min_ps(_mm512_set1_ps(120.0f), _mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)));
  const __m512 sum = _mm512_add_ps(one, PowerOfTwo(power));
  const __m512 guess = _mm512_rcp14_ps(sum);
  const __m512 slip = _mm512_fnmadd_ps(sum, guess, one);
  return _mm512_mul_ps(x, _mm512_fmadd_ps(guess, slip, guess));
}

// Where the sums of 32 rows or less go: the second half follows the first or belongs to another
// matrix. What does not fill the tiles goes by way of a buffer.
class Target {
 public:
  Target(const BfloatTask& task, int64_t row, int64_t output)
      : stride_(task.n), narrowed_(task.narrowed) {
    const bool two = task.up_panels != nullptr;
    const int64_t rows = task.rows - row, at = row * task.n + output, left = task.n - output;
    y_[0] = task.y + at;
    y_[1] = two ? task.up_y + at : task.y + at + kHalf;
    lanes_[0] = LeadingLanes(left);
    lanes_[1] = two ? lanes_[0] : LeadingLanes(left - kHalf);
    rows_ = static_cast<int>(rows < kPairRows ? rows : kPairRows);
    if (narrowed_ == nullptr) return;
    swaps_ = SwapsInputs(task.narrowed_kind);
    narrowed_ += row * task.n + output / kAmxInputs * kTileInputs + output % kAmxInputs;
  }

  // A store that has to fetch its line first holds up all that follow.
  void Prefetch() const {
    if (narrowed_ != nullptr) return;
    for (int64_t r = 0; r < rows_; ++r) {
      __builtin_prefetch(y_[0] + r * stride_, 1);
      __builtin_prefetch(y_[1] + r * stride_, 1);
    }
  }

  void Load() {
    if (whole()) return LoadSums(both(), y_, stride_);
    ForRows([this](int64_t at, float* first, float* second) {
      _mm512_store_ps(first, _mm512_maskz_loadu_ps(lanes_[0], y_[0] + at));
      _mm512_store_ps(second, _mm512_maskz_loadu_ps(lanes_[1], y_[1] + at));
    });
    LoadSums(both(), buffer_halves_, 2 * kHalf);
  }

  void Store() {
    if (whole()) return StoreSums(both(), y_, stride_);
    StoreSums(both(), buffer_halves_, 2 * kHalf);
    ForRows([this](int64_t at, const float* first, const float* second) {
      _mm512_mask_storeu_ps(y_[0] + at, lanes_[0], _mm512_load_ps(first));
      _mm512_mask_storeu_ps(y_[1] + at, lanes_[1], _mm512_load_ps(second));
    });
  }

  void StoreGated() {
    StoreSums(both(), buffer_halves_, 2 * kHalf);
    if (narrowed_ != nullptr) return NarrowGated();
    ForRows([this](int64_t at, const float* first, const float* second) {
      _mm512_mask_storeu_ps(y_[0] + at, lanes_[0],
                            _mm512_mul_ps(Silu(_mm512_load_ps(first)), _mm512_load_ps(second)));
    });
  }

 private:
  // Sixteen inputs of a step, in the order that its weights have.
  void NarrowGated() const {
    for (int r = 0; r < rows_; ++r) {
      const __m512 v = _mm512_mul_ps(Silu(_mm512_load_ps(buffer_[r])),
                                     _mm512_load_ps(buffer_[r] + kHalf));
      const __m512 ordered = swaps_ ? _mm512_permute_ps(v, 0xd8) : v;
      uint16_t* tile = narrowed_ + r / kAmxRows * kAmxRows * stride_;
      _mm256_store_si256(reinterpret_cast<__m256i*>(tile + r % kAmxRows * kAmxInputs),
                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(ordered)));
    }
  }

  bool both() const { return rows_ > kAmxRows; }
  bool whole() const { return rows_ % kAmxRows == 0 && (lanes_[0] & lanes_[1]) == 0xffff; }

  template <typename Fn>
  void ForRows(const Fn& fn) {
    for (int r = 0; r < rows_; ++r) fn(r * stride_, buffer_[r], buffer_[r] + kHalf);
  }

  float* y_[2];
  int64_t stride_;
  __mmask16 lanes_[2];  // outputs that exist
  int rows_;
  uint16_t* narrowed_;  // null, or the place of the first row's inputs
  bool swaps_ = false;
  alignas(64) float buffer_[kPairRows][2 * kHalf];
  float* const buffer_halves_[2] = {buffer_[0], buffer_[0] + kHalf};
};

// `x` and, `next` bytes on, another tile of rows. Rows are marked as soon done with, so that they
// leave the weights in the first-level cache.
template <bool kBoth>
inline void MultiplySteps(const uint8_t* x, int64_t next, const uint8_t* weights, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, x += kTileBytes, weights += kStepBytes) {
    _tile_stream_loadd(4, x, 64);
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kBoth) {
      _tile_stream_loadd(5, x + next, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// The outputs of kAmxPanels panels of a matrix, or of half as many of two.
template <PanelKind kKind>
class PanelGroup {
 public:
  PanelGroup(const BfloatTask& task, int64_t panel)
      : task_(task),
        steps_((task.k + kAmxInputs - 1) / kAmxInputs),
        output_(panel * kPanelOutputs),
        first_(task, task.panels, panel),
        second_(task, task.up_panels == nullptr ? task.panels : task.up_panels,
                task.up_panels == nullptr ? panel + 2 : panel) {}

  void Run(uint8_t* weights) {
    if (task_.rows <= kAmxRows) return RunFew<false>(weights);
    if (task_.rows <= kPairRows) return RunFew<true>(weights);
    for (int64_t begin = 0; begin < steps_; begin += kBlockSteps) {
      const int64_t end = begin + kBlockSteps < steps_ ? begin + kBlockSteps : steps_;
      Widen(begin, end, weights);
      for (int64_t row = 0; row < task_.rows; row += kPairRows) {
        if (task_.rows - row > kAmxRows) {
          RunBlock<true>(row, begin, end, weights);
        } else {
          RunBlock<false>(row, begin, end, weights);
        }
      }
    }
  }

 private:
  void Widen(int64_t begin, int64_t end, uint8_t* weights) {
    for (int64_t s = begin; s < end; ++s, weights += kStepBytes) {
      first_.Step(s, weights);
      second_.Step(s, weights + kTileBytes);
    }
  }

  const uint8_t* RowsAt(int64_t row, int64_t step) const {
    return reinterpret_cast<const uint8_t*>(task_.x) +
           (row / kAmxRows * steps_ + step) * kTileBytes;
  }

  void Finish(Target* target) const {
    if (task_.up_panels != nullptr) return target->StoreGated();
    target->Store();
  }

  template <bool kBoth>
  void RunBlock(int64_t row, int64_t begin, int64_t end, const uint8_t* weights) {
    Target target(task_, row, output_);
    target.Prefetch();
    if (begin == 0) {
      ZeroSums();
    } else {
      target.Load();
    }
    MultiplySteps<kBoth>(RowsAt(row, begin), steps_ * kTileBytes, weights, end - begin);
    if (end < steps_) return target.Store();
    Finish(&target);
  }

  // What was just written can't be loaded into a tile at once, so the products lag behind.
  template <bool kBoth>
  void RunFew(uint8_t* weights) {
    constexpr int64_t kRing = 4 * kFewSteps;
    ZeroSums();
    int64_t widened = 0;
    for (int64_t begin = 0; begin < steps_; begin += kFewSteps) {
      for (; widened < begin + 2 * kFewSteps && widened < steps_; ++widened) {
        Widen(widened, widened + 1, weights + widened % kRing * kStepBytes);
      }
      const int64_t count = steps_ - begin < kFewSteps ? steps_ - begin : kFewSteps;
      MultiplySteps<kBoth>(RowsAt(0, begin), steps_ * kTileBytes,
                           weights + begin % kRing * kStepBytes, count);
    }
    Target target(task_, 0, output_);
    Finish(&target);
  }

  const BfloatTask& task_;
  const int64_t steps_, output_;
  PairWidener<kKind> first_, second_;
};

}  // namespace

void MultiplyBfloat(const BfloatTask& task) {
  alignas(64) uint8_t weights[kBlockSteps * kStepBytes];
  const int64_t panels = task.up_panels == nullptr ? kAmxPanels : kAmxPanels / 2;
  const Tiles tiles;
  WithAnyKind(task.kind, [&]<PanelKind kKind>() {
    for (int64_t p = task.panel_begin; p < task.panel_end; p += panels) {
      PanelGroup<kKind>(task, p).Run(weights);
    }
  });
}

void NarrowRows(PanelKind kind, const float* x, int64_t k, int64_t rows, uint16_t* tile) {
  const int64_t steps = (k + kAmxInputs - 1) / kAmxInputs;
  const __m512i order = InputOrder(kind);
  for (int64_t r = 0; r < kAmxRows; ++r) {
    for (int64_t s = 0; s < steps; ++s) {
      __m512i v = _mm512_setzero_si512();
      if (r < rows) {
        const float* from = x + r * k + s * kAmxInputs;
        const int64_t left = k - s * kAmxInputs;
        v = NarrowPair(_mm512_maskz_loadu_ps(LeadingLanes(left), from),
                       _mm512_maskz_loadu_ps(LeadingLanes(left - 16), from + 16));
      }
      _mm512_store_si512(tile + (s * kAmxRows + r) * kAmxInputs,
                         _mm512_permutexvar_epi16(order, v));
    }
  }
}

namespace {
constexpr AmxKernels kTable = {
    .narrow_rows = NarrowRows, .matmul = MultiplyBfloat, .attend_chunk = AttendOnTiles};
}  // namespace

}  // namespace trivium::kernels::TRIVIUM_SIMD

namespace trivium::kernels {
const AmxKernels& TRIVIUM_SIMD_TABLE() { return TRIVIUM_SIMD::kTable; }
}  // namespace trivium::kernels
