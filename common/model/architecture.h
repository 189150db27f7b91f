// What a file says about its transformer, checked: the architectures that we run, as a table of
// options. Stateless; safe from any thread.
#pragma once

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/model.h"

namespace trivium::model {

// UNIMPLEMENTED for an architecture or an option that we do not run, INVALID_ARGUMENT for numbers
// that cannot be; both name the key.
absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file);

}  // namespace trivium::model
