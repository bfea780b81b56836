// A weight matrix in panels, and the product of many rows with it.
#pragma once

#include <memory>

#include "prefetch_queue.h"
#include "doge_kernels.h"
#include "isa.h"

namespace doge {

class Packed {
 public:
  Packed() = default;
  explicit Packed(const Matrix& matrix);  // throws Error for a shape or dtype it cannot hold

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  bool empty() const { return n_ == 0; }
  bool quantized() const { return block_ > 0; }
  int64_t block() const { return block_; }
  size_t panel_bytes() const { return panel_bytes_; }

  // out[r][0..64) = x[r] . outputs of panel p, r < rows. x: floats `ldx` apart, or, where quantized(), rows
  // of quantize_row `ldx` bytes apart. Outputs beyond n are 0.
  void multiply(int64_t p, int64_t rows, const void* x, int64_t ldx, float* out, int64_t ldo) const;

  // The same up to the low bytes of x, where quantized() and the loops have rough_i8 and rough_i4.
  void multiply_roughly(int64_t p, int64_t rows, const void* x, int64_t ldx, float* out, int64_t ldo) const;

  // Panel p is read next.
  void announce(int64_t p, PrefetchQueue* queue) const;

 private:
  Dtype dtype_ = Dtype::none;
  int64_t n_ = 0, k_ = 0, block_ = 0;
  size_t panel_bytes_ = 0, scale_count_ = 0;  // of one panel
  std::shared_ptr<uint8_t> memory_, scale_memory_;
  uint8_t* data_ = nullptr;
  uint16_t* scales_ = nullptr;
};

// Element i of row r of a matrix as a float.
float element(const Matrix& matrix, int64_t row, int64_t i);
// A whole row, dequantized.
void read_row(const Matrix& matrix, int64_t row, float* to);
// Throws Error where the matrix breaks a rule of doge_kernels.h.
void check(const Matrix& matrix);
// The signed nibble i of an int4 row-major array.
inline int32_t nibble(const void* data, int64_t i) {
  const uint8_t byte = static_cast<const uint8_t*>(data)[i / 2];
  const int32_t value = i % 2 ? byte >> 4 : byte & 15;
  return value >= 8 ? value - 16 : value;
}

}  // namespace doge
