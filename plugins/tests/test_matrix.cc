// Packed matrix products of every kind and every number of rows against float64, and ties across row counts.
#include "oracle.h"

#include "../kernels/isa.h"

using namespace oracle;
using doge::Dtype;

namespace {

void run(Dtype dtype, int64_t n, int64_t k, int64_t block, double limit) {
  Random random(static_cast<unsigned>(n * 131 + k + block));
  OwnMatrix w;
  w.draw(random, dtype, n, k, block);
  const doge::Packed packed(w.matrix);
  const std::string name = "dtype " + std::to_string(static_cast<int>(dtype)) + " n " + std::to_string(n) + " k " + std::to_string(k);
  Floats one;  // the first row alone
  for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 16, 35}) {
    Random again(7);
    const Floats x = again.normal(rows * k);
    const Doubles expected = linear(Doubles(x.begin(), x.end()), rows, w);
    const auto stride = packed.quantized() ? static_cast<int64_t>(doge::quantized_bytes(k, block)) : k;
    std::vector<uint8_t> digits(static_cast<size_t>(packed.quantized() ? rows * stride : 0) + 64);
    for (int64_t r = 0; packed.quantized() && r < rows; r++)
      doge::isa().quantize_row(x.data() + r * k, k, block, digits.data() + r * stride);
    Floats got(static_cast<size_t>(rows * n));
    Floats tile(static_cast<size_t>(rows * doge::kPanel));
    for (int64_t p = 0; p < packed.panels(); p++) {
      packed.multiply(p, rows, packed.quantized() ? static_cast<const void*>(digits.data()) : x.data(), stride, tile.data(), doge::kPanel);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t o = p * doge::kPanel; o < std::min(n, (p + 1) * doge::kPanel); o++)
          got[static_cast<size_t>(r * n + o)] = tile[static_cast<size_t>(r * doge::kPanel + o - p * doge::kPanel)];
    }
    // Against the size of what was added up: a lone sum may cancel to nearly nothing.
    double size = 1e-30, far = 0;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t o = 0; o < n; o++) {
        double squares = 0;
        for (int64_t i = 0; i < k; i++) {
          const double term = x[static_cast<size_t>(r * k + i)] * w.values[static_cast<size_t>(o * k + i)];
          squares += term * term;
        }
        size = std::max(size, std::sqrt(squares));
        far = std::max(far, std::fabs(got[static_cast<size_t>(r * n + o)] - expected[static_cast<size_t>(r * n + o)]));
      }
    far /= size;
    expect(far <= limit, name + " rows " + std::to_string(rows) + ": " + std::to_string(far));
    if (rows == 1) one = got;
    expect(std::equal(one.begin(), one.end(), got.begin()), name + ": a row's result depends on the number of rows");
  }
}

}  // namespace

int main() {
  for (int64_t n : {1, 64, 70, 192})
    for (int64_t k : {8, 64, 128, 192, 512}) {
      run(Dtype::float32, n, k, 0, 8e-6);
      run(Dtype::float16, n, k, 0, 8e-6);
      run(Dtype::bfloat16, n, k, 0, 8e-6);
      for (int64_t block : {8, 16, 32, 64, 96, 128}) {
        if (k % block) continue;
        run(Dtype::int8, n, k, block, 2e-4);
        run(Dtype::int4, n, k, block, 2e-4);
      }
    }
  run(Dtype::int8, 65, 100, 20, 2e-4);  // blocks that fill no vector
  run(Dtype::int8, 65, 36, 12, 2e-4);
  run(Dtype::float32, 3, 5, 0, 8e-6);
  for (uint32_t h = 0; h < 65536; h++) {  // every half survives the way to float and back
    const auto half = static_cast<uint16_t>(h);
    const float value = doge::half_to_float(half);
    if (value == value) expect(doge::float_to_half(value) == half, "half " + std::to_string(h));
  }
  Random random(1);
  OwnMatrix bad;
  bad.draw(random, Dtype::int8, 4, 64, 32);
  for (int64_t block : {0, 3, 24, 256}) {
    Matrix m = bad.matrix;
    m.block = block;
    expect(throws([&] { doge::Packed packed(m); }), "a block of " + std::to_string(block) + " is refused");
  }
  Matrix bare = bad.matrix;
  bare.scales = nullptr;
  expect(throws([&] { doge::Packed packed(bare); }), "missing scales are refused");
  expect(throws([&] { doge::Packed packed(Matrix{}); }), "an empty matrix is refused");
  return finish(doge::instruction_set());
}
