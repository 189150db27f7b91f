// Threads that compute and never wait, so that transfers can be measured beside an engine's work.
// Thread-safety: none; they end with the object.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace trivium::transfer {

class Spinner {
 public:
  explicit Spinner(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Spin(); });
  }
  ~Spinner() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Spin() {
    float sums[64] = {};
    while (!stop_.load(std::memory_order_relaxed)) {
      for (int i = 0; i < 4096; ++i) {
        for (float& sum : sums) sum = sum * 0.999f + 1.0f;
      }
      for (const float sum : sums) sink_.store(sum, std::memory_order_relaxed);
    }
  }

  std::atomic<bool> stop_{false};
  std::atomic<float> sink_{0};
  std::vector<std::thread> threads_;
};

}  // namespace trivium::transfer
