// Packed matrix products of every kind and every number of rows against float64, and ties across row counts.
#include "oracle.h"

#include "../kernels/isa.h"

using namespace oracle;
using doge::Dtype;

namespace {

constexpr int64_t kMostRows = 65;  // more than a tile of any loops, several times

// Every number of rows from 1 to kMostRows gives each row the bits that it has alone; alone it is held to float64.
void run(Dtype dtype, int64_t n, int64_t k, int64_t block, double limit) {
  Random random(static_cast<unsigned>(n * 131 + k + block));
  OwnMatrix w;
  w.draw(random, dtype, n, k, block);
  const doge::Packed packed(w.matrix);
  const std::string name = "dtype " + std::to_string(static_cast<int>(dtype)) + " n " + std::to_string(n) + " k " +
                           std::to_string(k) + " block " + std::to_string(block);
  Random again(7);
  const Floats x = again.normal(kMostRows * k);
  const auto stride = packed.quantized() ? static_cast<int64_t>(doge::quantized_bytes(k, block)) : k;
  std::vector<uint8_t> digits(static_cast<size_t>(packed.quantized() ? kMostRows * stride : 0) + 64);
  for (int64_t r = 0; packed.quantized() && r < kMostRows; r++)
    doge::isa().quantize_row(x.data() + r * k, k, block, digits.data() + r * stride);
  const auto row = [&](int64_t r) {
    return packed.quantized() ? static_cast<const void*>(digits.data() + r * stride) : x.data() + r * k;
  };
  constexpr int64_t kWide = doge::kPanel + 16;  // of what is written between two rows, nothing
  Floats alone(static_cast<size_t>(kMostRows * n)), tile(static_cast<size_t>(kMostRows * kWide));
  for (int64_t p = 0; p < packed.panels(); p++) {
    const int64_t at = p * doge::kPanel, width = std::min(n - at, doge::kPanel);
    for (int64_t r = 0; r < kMostRows; r++) {
      packed.multiply(p, 1, row(r), stride, tile.data(), doge::kPanel);
      std::copy_n(tile.begin(), width, alone.begin() + r * n + at);
    }
    for (int64_t rows = 2; rows <= kMostRows; rows++) {
      std::fill(tile.begin(), tile.end(), -77.0f);
      packed.multiply(p, rows, row(0), stride, tile.data(), kWide);
      bool same = true, between = true;
      for (int64_t r = 0; r < kMostRows; r++) {
        const float* got = tile.data() + r * kWide;
        same = same && (r >= rows || std::equal(got, got + width, alone.begin() + r * n + at));
        between = between && std::all_of(got + (r < rows ? doge::kPanel : 0), got + kWide, [](float y) { return y == -77.0f; });
      }
      expect(same, name + ": a row's result depends on whether it is one of " + std::to_string(rows));
      expect(between, name + ": " + std::to_string(rows) + " rows write beside their place");
    }
  }
  // Against the size of what was added up: a lone sum may cancel to nearly nothing.
  const Doubles expected = linear(Doubles(x.begin(), x.end()), kMostRows, w);
  double size = 1e-30, far = 0;
  for (int64_t r = 0; r < kMostRows; r++)
    for (int64_t o = 0; o < n; o++) {
      double squares = 0;
      for (int64_t i = 0; i < k; i++) {
        const double term = x[static_cast<size_t>(r * k + i)] * w.values[static_cast<size_t>(o * k + i)];
        squares += term * term;
      }
      size = std::max(size, std::sqrt(squares));
      far = std::max(far, std::fabs(alone[static_cast<size_t>(r * n + o)] - expected[static_cast<size_t>(r * n + o)]));
    }
  far /= size;
  expect(far <= limit, name + ": " + std::to_string(far));
  if (dtype != Dtype::int8) return;
  // Output by output, in the order of the panels: the same bits.
  const int64_t blocks = k / block;
  for (int64_t r = 0; r < 3; r++)
    for (int64_t o = 0; o < n; o++) {
      const int8_t* weights = static_cast<const int8_t*>(w.matrix.data) + o * k;
      const uint16_t* scales = w.matrix.scales + o * blocks;
      float one;
      doge::isa().in_order_i8(1, k, block, digits.data() + r * stride, &weights, &scales, &one);
      expect(one == alone[static_cast<size_t>(r * n + o)], name + ": in_order_i8 has other bits than the panels");
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
  for (int64_t block : {4, 12, 20, 36, 48, 60, 100, 124})  // blocks that fill no vector
    run(Dtype::int8, 65, 3 * block, block, 2e-4);
  for (int64_t block : {24, 40, 48, 56, 88, 104, 120}) {
    run(Dtype::int8, 65, 2 * block, block, 2e-4);
    run(Dtype::int4, 65, 2 * block, block, 2e-4);
  }
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
