// synthetic_tower FILE: writes a vision tower with random weights, of the width of SmolLM2-135M, for
// benchmarks: what it computes means nothing, how much it computes is what matters.
#include <cstdio>

#include "common/base/status.h"
#include "common/vision/testing/tiny_tower.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: synthetic_tower FILE\n");
    return 2;
  }
  // 256 patches and 64 tokens a slice; 21 M weights.
  const absl::Status status = trivium::vision::WriteTinyTower(argv[1], {.image = 256,
                                                                        .patch = 16,
                                                                        .hidden = 384,
                                                                        .heads = 6,
                                                                        .ffn = 1536,
                                                                        .layers = 12,
                                                                        .merge = 2,
                                                                        .out_hidden = 576,
                                                                        .longest_edge = 256});
  if (!status.ok()) std::fprintf(stderr, "%s\n", trivium::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
