#include "draws.h"

namespace doge::ort {

namespace {

constexpr const char* kRoles[] = {"sampling", "draw_key", "seen", "logit_bias", "allowed"};

}  // namespace

std::vector<std::string> DrawInputs::roles() { return {std::begin(kRoles), std::end(kRoles)}; }

void DrawInputs::read_places(const Node& node) {
  for (size_t i = 0; i < kCount; ++i) places_[i] = node.find(kRoles[i]);
  for (size_t i = 0; i < kCount; ++i)
    if ((places_[i] < 0) != (places_[0] < 0)) throw Error(std::string("Of the inputs for draws it has some, and ") + kRoles[places_[i] < 0 ? i : 0] + " not.");
}

std::vector<Draw> DrawInputs::read(Call& call, int64_t batch, int64_t vocab) const {
  if (places_[kSampling] < 0) return {};
  const auto given = [&](int which) { return call.input(static_cast<size_t>(places_[which])); };
  const Tensor sampling = given(kSampling);
  if (sampling.shape.rank() == 2 && sampling.shape[0] == 0) return {};
  const double* settings = sampling.expect("sampling", kDouble, {batch, 5}).as<double>();
  const int64_t* keys = given(kKey).expect("draw_key", kInt64, {batch, 2}).as<int64_t>();
  // Tensors that are left out have no rows.
  const auto rows = [&](int which, ElementType type, int64_t width) -> const void* {
    const Tensor tensor = given(which);
    if (tensor.shape.rank() == 2 && tensor.shape[0] == 0) return nullptr;
    return tensor.expect(kRoles[which], type, {batch, width}).data;
  };
  const Tensor seen = given(kSeen);
  const int64_t most = seen.shape.rank() == 2 ? seen.shape[1] : 0, words = (vocab + 63) / 64;
  const auto* ids = static_cast<const int64_t*>(rows(kSeen, kInt64, most));
  const auto* bias = static_cast<const float*>(rows(kBias, kFloat, vocab));
  const auto* allowed = static_cast<const uint64_t*>(rows(kAllowed, kInt64, words));
  std::vector<Draw> draws(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    Draw& draw = draws[static_cast<size_t>(b)];
    const double* own = settings + 5 * b;
    draw.temperature = static_cast<float>(own[0]);
    if (!(own[1] >= 0 && own[1] < 0x1p53)) throw Error("Row " + std::to_string(b) + ": top_k cannot be " + std::to_string(own[1]) + ".");
    draw.top_k = static_cast<int64_t>(own[1]);
    draw.top_p = own[2];
    draw.min_p = own[3];
    draw.repetition_penalty = static_cast<float>(own[4]);
    draw.seed = static_cast<uint64_t>(keys[2 * b]);
    draw.row = static_cast<uint64_t>(keys[2 * b + 1]);
    if (bias) draw.bias = bias + b * vocab;
    if (allowed) draw.allowed = allowed + b * words;
    for (int64_t i = 0; ids && i < most; ++i)
      if (ids[b * most + i] != -1) draw.seen.push_back(ids[b * most + i]);
  }
  return draws;
}

}  // namespace doge::ort
