// One panel's product, several times: what scripts/count_arm.py counts the instructions of.
//
//   count KIND BLOCK ROWS TIMES     KIND: int8, int4, float32, float16, or quantize for the digits of the rows
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../plugins/kernels/isa.h"

int main(int count, char** arguments) {
  if (count != 5) return 2;
  const std::string kind = arguments[1];
  const int64_t block = std::atoll(arguments[2]), rows = std::atoll(arguments[3]), times = std::atoll(arguments[4]);
  constexpr int64_t k = 512, n = doge::kPanel;
  const doge::Isa& loops = doge::isa();
  const size_t stride = doge::quantized_bytes(k, block);
  std::vector<float> x(static_cast<size_t>(rows * k)), y(static_cast<size_t>(rows * n)), floats(k * n);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i % 31) - 15;
  const std::vector<uint16_t> halves(k * n), scales(static_cast<size_t>(k / block * n), 0x3c00);
  const std::vector<uint8_t> bytes(k * n);
  std::vector<uint8_t> digits(static_cast<size_t>(rows) * stride);
  const auto quantize = [&] {
    for (int64_t r = 0; r < rows; r++)
      loops.quantize_row(x.data() + r * k, k, block, digits.data() + static_cast<size_t>(r) * stride);
  };
  quantize();
  const auto gemm = kind == "int8" ? loops.gemm_i8 : loops.gemm_i4;
  for (int64_t i = 0; i < times; i++) {
    if (kind == "int8" || kind == "int4")
      gemm(rows, k, block, digits.data(), stride, bytes.data(), scales.data(), y.data(), n);
    else if (kind == "float32")
      loops.gemm_f32(rows, k, x.data(), k, floats.data(), n, y.data(), n);
    else if (kind == "float16")
      loops.gemm_f16(rows, k, x.data(), k, halves.data(), y.data(), n);
    else
      quantize();
  }
  std::puts(loops.name);
}
