// BLAKE2b over a sequence of fields, each preceded by its length so that no two sequences of fields
// share an input. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace trivium::model {

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void Add(std::string_view bytes);
  void AddInt(int64_t value);

  // 32 bytes: the first half of BLAKE2b-512. Ends the digest; nothing may be added afterwards.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Hex(std::string_view bytes);

}  // namespace trivium::model
