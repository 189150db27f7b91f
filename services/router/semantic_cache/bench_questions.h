// Benchmark support: questions made of templates, with the truth of each known. The same seed gives
// the same ones. One thread at a time.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace trivium::router {

struct BenchQuery {
  std::string category;
  std::string intent;  // questions of one intent have one answer
  int version = 0;     // of that answer, which changes with time for prices
  std::string text;
  int64_t at_ms = 0;
};

class BenchQuestions {
 public:
  explicit BenchQuestions(uint32_t seed) : random_(seed) {}

  std::string Long();  // of about 30 tokens
  std::vector<std::string> Distinct(size_t count);
  // Six categories in turn of chance over ten hours: code and docs repeat themselves (Zipf 1.1, in
  // other words), prices do too and change every quarter of an hour, the rest hardly repeats.
  std::vector<BenchQuery> Workload(int count);

 private:
  size_t Zipf(size_t items);
  size_t Below(size_t limit) { return random_() % limit; }

  std::mt19937 random_;
};

}  // namespace trivium::router
