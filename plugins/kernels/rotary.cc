// The angles of the rotary embedding.
#include <algorithm>
#include <cmath>

#include "doge_kernels.h"
#include "half.h"

namespace doge {

RotaryAngles::RotaryAngles(const RotaryConfig& config, Vector frequencies, Vector long_frequencies, Vector exponents)
    : config_(config), frequencies_(std::move(frequencies)), long_(std::move(long_frequencies)),
      exponents_(std::move(exponents)) {
  const size_t half = frequencies_.size();
  if (half == 0) throw Error("The rotary embedding has no frequencies.");
  if ((!long_.empty() && long_.size() != half) || (!exponents_.empty() && exponents_.size() != half))
    throw Error("The rotary embedding's frequencies differ in number.");
  if ((config.limit > 0) != (!long_.empty() || !exponents_.empty()))
    throw Error("A rotary embedding has other frequencies beyond a limit, and either they or the limit are missing.");
}

void RotaryAngles::run(Dtype dtype, int64_t tokens, const int64_t* positions, void* cos, void* sin,
                       int64_t length) const {
  const size_t half = frequencies_.size();
  const float* frequencies = frequencies_.data();
  if (tokens > 0) length = std::max(length, next_position(*std::max_element(positions, positions + tokens)));
  thread_local Vector own;
  own.resize(3 * half);
  if (config_.limit > 0 && static_cast<float>(length) > config_.limit) {
    frequencies = long_.data();
    if (!exponents_.empty()) {
      const float ratio = config_.factor * static_cast<float>(length) / config_.limit - config_.offset;
      const float base = std::pow(ratio, config_.power) * config_.theta;
      for (size_t i = 0; i < half; i++) own[i] = 1.0f / std::pow(base, exponents_[i]);
      frequencies = own.data();
    }
  }
  float *cosines = own.data() + half, *sines = cosines + half;
  for (int64_t t = 0; t < tokens; t++) {
    const auto position = static_cast<float>(positions[t]);
    for (size_t i = 0; i < half; i++) {
      const float angle = position * frequencies[i];
      cosines[i] = std::cos(angle) * config_.scaling;
      sines[i] = std::sin(angle) * config_.scaling;
    }
    const auto size = static_cast<int64_t>(half);
    write_floats(dtype, cosines, size, cos, t * size);
    write_floats(dtype, sines, size, sin, t * size);
  }
}

}  // namespace doge
