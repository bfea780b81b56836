// The table of one instruction set: its products have the same bits in every form that has them, whatever the
// number of rows and however short the blocks, and at the ends of the range. `test_isa NAME` also asks that it
// is the one of that name.
#include "oracle.h"

#include <cstring>

#include "../kernels/isa.h"

using namespace oracle;
using doge::Dtype;
using doge::Isa;

namespace {

// Rows of one quantize_row each.
std::vector<uint8_t> digits_of(const Isa& loops, const Floats& x, int64_t rows, int64_t k, int64_t block) {
  const size_t stride = doge::quantized_bytes(k, block);
  std::vector<uint8_t> digits(static_cast<size_t>(rows) * stride);
  for (int64_t r = 0; r < rows; r++)
    loops.quantize_row(x.data() + r * k, k, block, digits.data() + static_cast<size_t>(r) * stride);
  return digits;
}

// 64 outputs. `panel` is laid out as isa.h describes it, but for Isa::flip, for the tables that promise each
// other's bits.
struct Weights {
  int64_t k, block;
  bool nibbles;
  std::vector<int8_t> q;                       // [64, k]
  std::vector<uint16_t> scales, panel_scales;  // [64, k / block], [k / block, 64]
  std::vector<uint8_t> panel;
  doge::Packed packed;

  // `least` and `most`: what is drawn, each as often as the others.
  Weights(Random& random, int64_t k_, int64_t block_, bool nibbles_, int least, int most)
      : k(k_), block(block_), nibbles(nibbles_) {
    panel.resize(static_cast<size_t>(doge::kPanel * k / (nibbles ? 2 : 1)));
    std::vector<uint8_t> file(panel.size());
    std::uniform_int_distribution<int> any(least, most);
    for (int64_t at = 0; at < doge::kPanel * k; at++) {
      const int32_t value = any(random.engine);
      const int64_t o = at / k, i = at % k;
      q.push_back(static_cast<int8_t>(value));
      if (nibbles) {
        panel[of_group(i / 8, o) + i % 4] |= static_cast<uint8_t>((value + 8) << (i % 8 / 4 * 4));
        file[static_cast<size_t>(at / 2)] |= static_cast<uint8_t>((value & 15) << (at % 2 * 4));
      } else {
        panel[of_group(i / 4, o) + i % 4] = static_cast<uint8_t>(value);
        file[static_cast<size_t>(at)] = static_cast<uint8_t>(value);
      }
    }
    const auto blocks = static_cast<size_t>(k / block);
    for (float s : random.normal(doge::kPanel * (k / block), 0.01f)) scales.push_back(doge::float_to_half(s));
    for (size_t b = 0; b < blocks; b++)
      for (size_t o = 0; o < doge::kPanel; o++) panel_scales.push_back(scales[o * blocks + b]);
    const Dtype dtype = nibbles ? Dtype::int4 : Dtype::int8;
    packed = doge::Packed({dtype, doge::kPanel, k, file.data(), scales.data(), block});
  }

  static size_t of_group(int64_t group, int64_t o) {
    return static_cast<size_t>((group * doge::kPanel + o) * 4);
  }

  double weight(int64_t o, int64_t i) const {
    const double scale = doge::half_to_float(scales[static_cast<size_t>(o * (k / block) + i / block)]);
    return scale * q[static_cast<size_t>(o * k + i)];
  }

  Floats multiply(const Floats& x, int64_t rows) const {
    const std::vector<uint8_t> digits = digits_of(doge::isa(), x, rows, k, block);
    Floats y(static_cast<size_t>(rows * doge::kPanel));
    const auto stride = static_cast<int64_t>(doge::quantized_bytes(k, block));
    packed.multiply(0, rows, digits.data(), stride, y.data(), doge::kPanel);
    return y;
  }
  Floats multiply_by(const Isa& loops, const Floats& x, int64_t rows) const {
    const std::vector<uint8_t> digits = digits_of(loops, x, rows, k, block);
    Floats y(static_cast<size_t>(rows * doge::kPanel));
    std::vector<uint8_t> flipped = panel;
    for (uint8_t& byte : flipped) byte = static_cast<uint8_t>(byte ^ (nibbles ? 0 : loops.flip));
    (nibbles ? loops.gemm_i4 : loops.gemm_i8)(rows, k, block, digits.data(), doge::quantized_bytes(k, block),
                                              flipped.data(), panel_scales.data(), y.data(), doge::kPanel);
    return y;
  }
};

bool same_bits(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

// The table that promises the bits of this one; null where none does.
const Isa* twin_of(const Isa& loops) {
  [[maybe_unused]] const std::string name = loops.name;
#if defined(__x86_64__)
  if (name == "amx") return &doge::isa_avx512;
#elif defined(__aarch64__)
  if (name == "dotprod" || name == "i8mm") return &doge::isa_neon;
#endif
  return nullptr;
}

void quantized_products(Random& random, const Weights& w, const Floats& x, int64_t rows,
                        const std::string& name) {
  const Isa& loops = doge::isa();
  const Floats all = w.multiply(x, rows);
  if (const Isa* twin = twin_of(loops))
    expect(w.multiply_by(*twin, x, rows) == all, name + " has the bits of " + twin->name);
  for (int64_t r = 0; r < rows; r++) {
    const Floats row(x.begin() + r * w.k, x.begin() + (r + 1) * w.k);
    const Floats one = w.multiply(row, 1);
    expect(same_bits(one.data(), all.data() + r * doge::kPanel, doge::kPanel), name + ": a row alone");
    double most = 0;
    for (float value : row) most = std::max(most, std::fabs(static_cast<double>(value)));
    double worst = 0, size = 0;  // every digit may be off by half a step, and the sum rounds once a block
    for (int64_t o = 0; o < doge::kPanel; o++) {
      double expected = 0, reach = 0;
      for (int64_t i = 0; i < w.k; i++) {
        expected += w.weight(o, i) * row[static_cast<size_t>(i)];
        reach += std::fabs(w.weight(o, i)) * most;
      }
      worst = std::max(worst, std::fabs(expected - one[static_cast<size_t>(o)]));
      size = std::max(size, reach);
    }
    expect(worst <= size * (0.51 / 32512), name + ": " + std::to_string(worst / size) + " from float64");
    if (w.nibbles) continue;
    std::vector<const int8_t*> of(doge::kPanel);
    std::vector<const uint16_t*> scales(doge::kPanel);
    for (size_t o = 0; o < doge::kPanel; o++) {
      of[o] = w.q.data() + static_cast<int64_t>(o) * w.k;
      scales[o] = w.scales.data() + static_cast<int64_t>(o) * (w.k / w.block);
    }
    const int64_t count = 1 + static_cast<int64_t>(random.engine() % doge::kPanel);
    Floats y(static_cast<size_t>(count));
    const std::vector<uint8_t> digits = digits_of(loops, row, 1, w.k, w.block);
    loops.in_order_i8(count, w.k, w.block, digits.data(), of.data(), scales.data(), y.data());
    expect(same_bits(y.data(), one.data(), y.size()), name + ": in the order of the file");
  }
}

void quantized_products() {
  Random random(3);
  for (int64_t block : {4, 8, 12, 16, 20, 24, 32, 40, 64, 96, 100, 128})
    for (bool nibbles : {false, true}) {
      if (nibbles && block % 8) continue;
      const int least = nibbles ? -8 : -128, most = nibbles ? 7 : 127;
      for (int64_t blocks : {1, 2, 5})
        for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 33}) {
          if (rows > 9 && blocks != 2) continue;
          const int64_t k = block * blocks;
          const std::string name = (nibbles ? "int4 block " : "int8 block ") + std::to_string(block) + " k " +
                                   std::to_string(k) + " rows " + std::to_string(rows);
          const Weights w(random, k, block, nibbles, least, most);
          quantized_products(random, w, random.normal(rows * k), rows, name);
        }
      // Sums as large as they get, and digits whose low byte is -128.
      for (float edge : {1.0f, -1.0f, 32384.0f / 32512.0f}) {
        Floats x(static_cast<size_t>(3 * 2 * block), edge);
        x[0] = x[static_cast<size_t>(2 * block)] = x[static_cast<size_t>(4 * block)] = 1.0f;
        for (int value : {least, most})
          quantized_products(random, Weights(random, 2 * block, block, nibbles, value, value), x, 3,
                             "the end of the range, block " + std::to_string(block));
      }
    }
}

template <class T>
void float_products(Random& random, int64_t k) {
  const Isa& loops = doge::isa();
  std::vector<T> panel;  // [k, 64]
  for (float value : random.normal(k * doge::kPanel)) {
    if constexpr (sizeof(T) == 2)
      panel.push_back(doge::float_to_half(value));
    else
      panel.push_back(value);
  }
  std::vector<T> file(panel.size());  // [64, k]
  std::vector<const T*> of(doge::kPanel);
  for (int64_t o = 0; o < doge::kPanel; o++) {
    of[static_cast<size_t>(o)] = file.data() + o * k;
    for (int64_t i = 0; i < k; i++)
      file[static_cast<size_t>(o * k + i)] = panel[static_cast<size_t>(i * doge::kPanel + o)];
  }
  const auto multiply = [&](int64_t rows, const float* x, float* y) {
    if constexpr (sizeof(T) == 2)
      loops.gemm_f16(rows, k, x, k, panel.data(), y, doge::kPanel);
    else
      loops.gemm_f32(rows, k, x, k, panel.data(), doge::kPanel, y, doge::kPanel);
  };
  const std::string name = std::string(sizeof(T) == 2 ? "float16" : "float32") + " k " + std::to_string(k);
  for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13}) {
    const Floats x = random.normal(rows * k);
    Floats all(static_cast<size_t>(rows * doge::kPanel)), one(doge::kPanel);
    multiply(rows, x.data(), all.data());
    for (int64_t r = 0; r < rows; r++) {
      multiply(1, x.data() + r * k, one.data());
      expect(same_bits(one.data(), all.data() + r * doge::kPanel, doge::kPanel), name + ": a row alone");
      const int64_t count = 1 + static_cast<int64_t>(random.engine() % doge::kPanel);
      Floats y(static_cast<size_t>(count));
      if constexpr (sizeof(T) == 2)
        loops.in_order_f16(count, k, x.data() + r * k, of.data(), y.data());
      else
        loops.in_order_f32(count, k, x.data() + r * k, of.data(), y.data());
      expect(same_bits(y.data(), one.data(), y.size()), name + ": in the order of the file");
    }
  }
}

void halves_and_masks(Random& random) {
  const Isa& loops = doge::isa();
  std::vector<uint16_t> halves(65536 + 3);
  for (size_t h = 0; h < halves.size(); h++) halves[h] = static_cast<uint16_t>(h);
  Floats wide(halves.size());
  loops.widen_f16(static_cast<int64_t>(halves.size()), halves.data(), wide.data());
  for (size_t h = 0; h < halves.size(); h++) {
    const float expected = doge::half_to_float(halves[h]);
    const bool good = std::isnan(expected) ? std::isnan(wide[h]) : same_bits(&expected, &wide[h], 1);
    expect(good, "half " + std::to_string(h) + " is " + std::to_string(wide[h]));
  }
  for (int times = 0; times < 20; times++) {
    Floats x = random.normal(doge::kPanel);
    x[random.engine() % x.size()] = std::nanf("");
    const float floor = x[random.engine() % x.size()];  // which may be NaN: then nothing is below
    uint64_t expected = 0;
    for (size_t i = 0; i < x.size(); i++) expected |= static_cast<uint64_t>(!(x[i] < floor)) << i;
    expect(loops.not_below(x.data(), floor) == expected, "not_below");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string chosen = doge::instruction_set();
  if (count > 1) expect(chosen == arguments[1], "the choice is " + std::string(arguments[1]));
  quantized_products();
  Random random(5);
  for (int64_t k : {1, 4, 31, 64, 200}) {
    float_products<float>(random, k);
    float_products<uint16_t>(random, k);
  }
  halves_and_masks(random);
  return finish(doge::instruction_set());
}
