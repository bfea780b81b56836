#include "packed.h"

#include <cstring>

#include "half.h"
#include "memory.h"

namespace doge {

void check(const Matrix& m) {
  if (m.n <= 0 || m.k <= 0 || m.data == nullptr) throw Error("A weight matrix is empty.");
  if (m.dtype == Dtype::int8 || m.dtype == Dtype::int4) {
    const int64_t unit = m.dtype == Dtype::int8 ? 4 : 8;
    if (m.scales == nullptr) throw Error("A quantized weight matrix has no scales.");
    if (m.block <= 0 || m.block > 128 || m.k % m.block || m.block % unit)
      throw Error("A quantized weight matrix of " + std::to_string(m.k) + " inputs has blocks of " +
                  std::to_string(m.block) + "; they must divide it, be at most 128 and a multiple of " +
                  std::to_string(unit) + ".");
  } else if (m.dtype == Dtype::none) {
    throw Error("A weight matrix has a type that the kernels do not know.");
  }
}

float element(const Matrix& m, int64_t row, int64_t i) {
  const int64_t at = row * m.k + i;
  switch (m.dtype) {
    case Dtype::float32: return static_cast<const float*>(m.data)[at];
    case Dtype::float16: return half_to_float(static_cast<const uint16_t*>(m.data)[at]);
    case Dtype::bfloat16: return bfloat16_to_float(static_cast<const uint16_t*>(m.data)[at]);
    case Dtype::int8:
      return static_cast<float>(static_cast<const int8_t*>(m.data)[at]) *
             half_to_float(m.scales[row * (m.k / m.block) + i / m.block]);
    case Dtype::int4:
      return static_cast<float>(nibble(m.data, at)) * half_to_float(m.scales[row * (m.k / m.block) + i / m.block]);
    default: throw Error("A weight matrix has a type that the kernels do not know.");
  }
}

void read_row(const Matrix& m, int64_t row, float* to) {
  if (m.dtype == Dtype::float32 || m.dtype == Dtype::float16 || m.dtype == Dtype::bfloat16) {
    read_floats(m.dtype, m.data, row * m.k, m.k, to);
    return;
  }
  for (int64_t b = 0; b < m.k / m.block; b++) {
    const float scale = half_to_float(m.scales[row * (m.k / m.block) + b]);
    for (int64_t i = b * m.block; i < (b + 1) * m.block; i++) {
      const int64_t at = row * m.k + i;
      const int32_t q = m.dtype == Dtype::int8 ? static_cast<const int8_t*>(m.data)[at] : nibble(m.data, at);
      to[i] = static_cast<float>(q) * scale;
    }
  }
}

Packed::Packed(const Matrix& m) : dtype_(m.dtype), n_(m.n), k_(m.k) {
  check(m);
  const bool quantized = m.dtype == Dtype::int8 || m.dtype == Dtype::int4;
  block_ = quantized ? m.block : 0;
  if (dtype_ == Dtype::bfloat16) dtype_ = Dtype::float32;
  const auto k = static_cast<size_t>(k_), outputs = static_cast<size_t>(kPanel);
  panel_bytes_ = dtype_ == Dtype::int4 ? k * outputs / 2 : k * outputs * (dtype_ == Dtype::float32 ? 4 : quantized ? 1 : 2);
  const auto count = static_cast<size_t>(panels());
  memory_ = weight_memory(panel_bytes_ * count);
  data_ = memory_.get();
  std::memset(data_, 0, panel_bytes_ * count);
  if (quantized) {
    scale_count_ = static_cast<size_t>(k_ / block_) * outputs;
    scale_memory_ = weight_memory(scale_count_ * count * 2);
    scales_ = reinterpret_cast<uint16_t*>(scale_memory_.get());
    std::memset(scales_, 0, scale_count_ * count * 2);
  }
  for (int64_t row = 0; row < n_; row++) {
    const int64_t p = row / kPanel, o = row % kPanel;
    uint8_t* panel = data_ + static_cast<size_t>(p) * panel_bytes_;
    for (int64_t b = 0; quantized && b < k_ / block_; b++)
      scales_[static_cast<size_t>(p) * scale_count_ + static_cast<size_t>(b * kPanel + o)] =
          m.scales[row * (k_ / block_) + b];
    switch (m.dtype) {
      case Dtype::int8: {
        const uint8_t* source = static_cast<const uint8_t*>(m.data) + row * k_;
        for (int64_t i = 0; i < k_; i += 4) {
          uint8_t* target = panel + (i / 4 * kPanel + o) * 4;
          for (int64_t j = 0; j < 4; j++) target[j] = static_cast<uint8_t>(source[i + j] ^ isa().flip);
        }
        break;
      }
      case Dtype::int4:
        for (int64_t i = 0; i < k_; i++) {
          const int32_t q = nibble(m.data, row * k_ + i) + 8;
          panel[(i / 8 * kPanel + o) * 4 + i % 4] |= static_cast<uint8_t>(q << (i % 8 / 4 * 4));
        }
        break;
      case Dtype::float16: {
        const uint16_t* source = static_cast<const uint16_t*>(m.data) + row * k_;
        for (int64_t i = 0; i < k_; i++) reinterpret_cast<uint16_t*>(panel)[i * kPanel + o] = source[i];
        break;
      }
      case Dtype::float32: {
        const float* source = static_cast<const float*>(m.data) + row * k_;
        for (int64_t i = 0; i < k_; i++) reinterpret_cast<float*>(panel)[i * kPanel + o] = source[i];
        break;
      }
      default:
        for (int64_t i = 0; i < k_; i++) reinterpret_cast<float*>(panel)[i * kPanel + o] = element(m, row, i);
    }
  }
}

void Packed::multiply(int64_t p, int64_t rows, const void* x, int64_t ldx, float* out, int64_t ldo) const {
  const Isa& loops = isa();
  const uint8_t* panel = data_ + static_cast<size_t>(p) * panel_bytes_;
  const uint16_t* scales = scales_ + static_cast<size_t>(p) * scale_count_;
  switch (dtype_) {
    case Dtype::int8:
      loops.gemm_i8(rows, k_, block_, static_cast<const uint8_t*>(x), static_cast<size_t>(ldx), panel, scales, out, ldo);
      break;
    case Dtype::int4:
      loops.gemm_i4(rows, k_, block_, static_cast<const uint8_t*>(x), static_cast<size_t>(ldx), panel, scales, out, ldo);
      break;
    case Dtype::float16:
      loops.gemm_f16(rows, k_, static_cast<const float*>(x), ldx, reinterpret_cast<const uint16_t*>(panel), out, ldo);
      break;
    default:
      loops.gemm_f32(rows, k_, static_cast<const float*>(x), ldx, reinterpret_cast<const float*>(panel), kPanel, out, ldo);
  }
}

void Packed::multiply_roughly(int64_t p, int64_t rows, const void* x, int64_t ldx, float* out, int64_t ldo) const {
  const auto loop = dtype_ == Dtype::int8 ? isa().rough_i8 : isa().rough_i4;
  loop(rows, k_, block_, static_cast<const uint8_t*>(x), static_cast<size_t>(ldx), data_ + static_cast<size_t>(p) * panel_bytes_,
       scales_ + static_cast<size_t>(p) * scale_count_, out, ldo);
}

void Packed::announce(int64_t p, PrefetchQueue* queue) const {
  if (quantized()) queue->add(scales_ + static_cast<size_t>(p) * scale_count_, scale_count_ * 2);
  queue->add(data_ + static_cast<size_t>(p) * panel_bytes_, panel_bytes_);
}

}  // namespace doge
