// For tests: passes every operation on and keeps a record of what it was asked to do.
// Thread-safety: that of the Ops inside.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace trivium::engine {

struct OpsRecord {
  struct Gemm {
    int64_t outputs = 0, inputs = 0;
    int rows = 0;
  };
  std::vector<Gemm> gemms;
  std::vector<int> embedded, attention_rows, stored_rows;
  std::set<const void*> buffers;  // every buffer that an operation wrote to
  void Clear() { *this = OpsRecord(); }
};

class CountingOps final : public kernels::Ops {
 public:
  CountingOps(std::unique_ptr<kernels::Ops> inner, std::shared_ptr<OpsRecord> record)
      : inner_(std::move(inner)), record_(std::move(record)) {}

  kernels::Isa isa() const override { return inner_->isa(); }
  kernels::Numerics numerics() const override { return inner_->numerics(); }
  int threads() const override { return inner_->threads(); }
  kernels::EncoderOps& encoder() override { return inner_->encoder(); }
  std::unique_ptr<kernels::Matrix> Pack(const kernels::WeightView& view) override {
    return inner_->Pack(view);
  }
  void Matmul(const kernels::Matrix& w, const float* x, int rows, float* y) override {
    record_->gemms.push_back({w.rows(), w.cols(), rows});
    record_->buffers.insert(y);
    inner_->Matmul(w, x, rows, y);
  }
  void EmbedRows(const kernels::WeightView& table, std::span<const int32_t> ids,
                 float* out) override {
    record_->embedded.push_back(static_cast<int>(ids.size()));
    record_->buffers.insert(out);
    inner_->EmbedRows(table, ids, out);
  }
  void RmsNorm(const float* x, const float* weight, float eps, int rows, int dim,
               float* out) override {
    record_->buffers.insert(out);
    inner_->RmsNorm(x, weight, eps, rows, dim, out);
  }
  void Rope(const kernels::RopeArgs& args) override { inner_->Rope(args); }
  void StoreKv(const kernels::StoreKvArgs& args) override {
    record_->stored_rows.push_back(RowsOf(args.spans));
    inner_->StoreKv(args);
  }
  void Attention(const kernels::AttentionArgs& args) override {
    record_->attention_rows.push_back(RowsOf(args.spans));
    record_->buffers.insert(args.out);
    inner_->Attention(args);
  }
  void ActivateMul(kernels::Activation activation, float* gate, const float* up,
                   int64_t count) override {
    inner_->ActivateMul(activation, gate, up, count);
  }
  void Add(float* x, const float* y, int64_t count) override { inner_->Add(x, y, count); }
  void Scale(float* x, float factor, int64_t count) override { inner_->Scale(x, factor, count); }
  void SoftCap(float* x, float cap, int64_t count) override { inner_->SoftCap(x, cap, count); }

 private:
  static int RowsOf(std::span<const kernels::SequenceSpan> spans) {
    int rows = 0;
    for (const kernels::SequenceSpan& span : spans) rows += span.row_count;
    return rows;
  }

  std::unique_ptr<kernels::Ops> inner_;
  std::shared_ptr<OpsRecord> record_;
};

}  // namespace trivium::engine
