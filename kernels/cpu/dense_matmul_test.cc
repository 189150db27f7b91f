// The oneDNN path by itself, so that it is tested on machines whose Ops prefer other kernels.
#include "kernels/cpu/dense_matmul.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

TEST(DenseMatmulTest, AgreesWithExactSums) {
  if (SupportedIsas().size() < 2) GTEST_SKIP() << "needs AVX2";
  auto random = SeededRandom();
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, DenseMatmul::StayInThisThread);
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{1, 32}, {33, 64}, {192, 576}, {100, 1536}}) {
      const auto bytes = RandomWeights(random, WeightType::kQ4_1, n, k);
      const auto w = Dequantise(WeightType::kQ4_1, bytes, n, k);
      const auto dense =
          DenseMatmul::Make({WeightType::kQ4_1, bytes.data(), n, k}, BestIsa(), pool);
      if (dense == nullptr) GTEST_SKIP() << "this machine has no such primitive";
      for (const int rows : {1, 63, 64, 65, 200}) {
        const auto x = RandomFloats(random, rows * k);
        std::vector<float> y(rows * n + 1, -77.0f);
        dense->Run(x.data(), rows, y.data());
        ASSERT_EQ(y.back(), -77.0f) << "wrote past the end";
        for (int64_t i = 0; i < rows * n; ++i) {
          double exact = 0, size = 0;
          for (int64_t j = 0; j < k; ++j) {
            const double product = double{x[i / n * k + j]} * w[i % n * k + j];
            exact += product;
            size += std::abs(product);
          }
          ASSERT_NEAR(y[i], exact, size * 0x1p-23 * (2 + std::sqrt(k)))
              << n << "x" << k << " rows " << rows << " element " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace trivium::kernels
