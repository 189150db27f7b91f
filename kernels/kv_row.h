// A row of a KV page, the keys or the values of one token, written and read in plain C++: what
// reference/ and tests use. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/ops.h"

namespace trivium::kernels {

const char* KvTypeName(KvType type);                      // "f16", "bf16", "int8"
bool ParseKvType(const std::string& name, KvType* type);  // false: no such name

// row[RowWords] = x[G, D], rounded.
void StoreKvRow(const KvLayout& layout, const float* x, uint16_t* row);
// out[D]: what a row holds of one kv head.
void LoadKvHead(const KvLayout& layout, const uint16_t* row, int kv_head, float* out);

}  // namespace trivium::kernels
