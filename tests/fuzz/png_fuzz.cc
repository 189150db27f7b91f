// Fuzzes the decoder of this format; an input of another one ends at once.
#include "tests/fuzz/picture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  trivium::fuzz::CheckPicture({data, size}, trivium::image::Format::kPng);
  return 0;
}
