// In place of common/model/mapped_file.cc: every path opens a copy of the bytes set here, on the
// heap and of their exact size, where AddressSanitizer sees a read behind their end. In the last
// page of a mapping it would not. One thread at a time.
#pragma once

#include <cstdint>
#include <span>

namespace trivium::fuzz {

// Must hold until the files that are opened from it are closed.
void SetFileBytes(std::span<const uint8_t> bytes);

}  // namespace trivium::fuzz
