// Activations as weight matrices read them: floats, and 16-bit digits for each block size.
#pragma once

#include <initializer_list>

#include "packed.h"

namespace doge {

// The rows of one input of several matrices: as floats, and quantized for each block size that they have.
struct ActivationRows {
  const float* floats = nullptr;
  int64_t k = 0;
  struct Digits {
    int64_t block = 0;
    uint8_t* bytes = nullptr;
    size_t stride = 0;
  } digits[4];
  int kinds = 0;

  // Finds the block sizes that the matrices need, and the bytes that a row of all of them takes.
  size_t plan(std::initializer_list<const Packed*> matrices) {
    size_t bytes = 0;
    for (const Packed* m : matrices) {
      if (m->empty()) continue;
      k = m->k();
      bool known = !m->quantized();
      for (int i = 0; i < kinds; i++) known = known || digits[i].block == m->block();
      if (known) continue;
      if (kinds == 4) throw Error("A layer's matrices have more than four block sizes.");
      digits[kinds].block = m->block();
      digits[kinds].stride = quantized_bytes(k, m->block());
      bytes += digits[kinds++].stride;
    }
    return bytes;
  }
  void place(uint8_t* memory, int64_t rows) {
    for (int i = 0; i < kinds; i++) {
      digits[i].bytes = memory;
      memory += digits[i].stride * static_cast<size_t>(rows);
    }
  }
  void quantize(int64_t row) const {
    for (int i = 0; i < kinds; i++)
      isa().quantize_row(floats + row * k, k, digits[i].block, digits[i].bytes + static_cast<size_t>(row) * digits[i].stride);
  }
  void multiply(const Packed& m, int64_t panel, int64_t first, int64_t rows, float* out, int64_t ldo) const {
    if (!m.quantized()) {
      m.multiply(panel, rows, floats + first * k, k, out, ldo);
      return;
    }
    for (int i = 0; i < kinds; i++)
      if (digits[i].block == m.block())
        m.multiply(panel, rows, digits[i].bytes + static_cast<size_t>(first) * digits[i].stride,
                   static_cast<int64_t>(digits[i].stride), out, ldo);
  }
};

}  // namespace doge
