// doge::DecodeTokens: a whole model on a cache in place, for one token or for several, each the best one after
// the last or a drawn one: nothing of the runtime's runs between two of them.
//
// Where `offsets` is not empty the call is ragged: the rows' tokens lie one after another, each row in a slot of the
// pool that the cache is (docs/reference/operators.md).

#include "draws.h"
#include "layer_weights.h"
#include "ragged_inputs.h"

namespace doge::ort {

namespace {

class Decoder final : public Kernel {
 public:
  explicit Decoder(Node& node) : element_(node.element()), count_(0) {
    const int64_t layers = node.integer("layers", 1, 4096);
    node.read_roles(roles(layers));
    bounded_ = node.has("past_position");
    told_ = node.has("rope_length");
    ragged_ = node.has("offsets");
    for (size_t i = 0; i < std::size(kCalled); ++i) {
      const std::string role = kCalled[i];
      const bool other = role == "cache_position" ? bounded_ : role == "past_position" ? !bounded_ : false;
      const bool rows = role == "offsets" || role == "slots" || role == "wanted" || role == "rope_lengths";
      if (!other && (role != "rope_length" || told_) && (!rows || ragged_)) places_[i] = node.place(role.c_str());
    }
    draws_.read_places(node);
    if (places_[kKey] != 0) throw Error("The first input must be past_key.");  // its type decides
    const size_t outputs = bounded_ ? 6 : 5;
    if (node.output_count() != outputs)
      throw Error("It has " + std::to_string(outputs) + " outputs, not " + std::to_string(node.output_count()) + ".");
    LayerConfig config = layer_config(node);
    std::vector<LayerWeights> weights;
    int64_t head_dim = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      weights.push_back(read_layer(node, std::to_string(layer) + ".", &config));
      if (layer > 0 && config.attention.head_dim != head_dim) throw Error("Two layers differ in head_dim.");
      head_dim = config.attention.head_dim;
    }
    attention_ = config.attention;
    layers_ = std::make_unique<DecoderLayers>(config, weights);
    const int64_t hidden = layers_->hidden_size();
    table_ = node.matrix("table", 0, hidden);
    angles_ = std::make_unique<RotaryAngles>(read_rotary(node));
    if (angles_->size() != head_dim / 2)
      throw Error("inv_freq has " + std::to_string(angles_->size()) + " numbers, and a head turns " +
                  std::to_string(head_dim / 2) + " pairs.");
    head_ = std::make_unique<Head>(node.vector("norm", {hidden}), config.epsilon, node.matrix("lm_head", 0, hidden), true);
    count_ = node.integer("count", 1, head_->vocab_size());
    if (head_->vocab_size() > table_.n) throw Error("The head has tokens that the table does not have.");
  }

  void run(Call& call) const override {
    const auto given = [&](size_t which) { return call.input(places_[which]); };
    const Tensor ids = given(kIds), positions = given(kPositions);
    const int64_t steps = *given(kSteps).expect("steps", kInt64, {}).as<int64_t>();
    if (steps < 1) throw Error("steps is " + std::to_string(steps) + ": there is nothing to do.");
    const Tensor key = given(kKey), value = given(kValue), dt = given(kDt);
    const auto layers = static_cast<int64_t>(layers_->count());
    const int64_t places = key.shape.rank() == 5 ? key.shape[3] : 0;

    RaggedCall ragged;
    if (ragged_ && given(kOffsets).shape.elements() > 0) {
      const int64_t pool = key.shape.rank() == 5 ? key.shape[1] : 0;
      ragged = read_ragged(ids, given(kOffsets), given(kSlots), given(kWanted), given(kLengths), pool, steps);
    }
    const bool rows = ids.shape.rank() == 2;
    const int64_t batch = ragged ? static_cast<int64_t>(ragged.rows.size()) : rows ? ids.shape[0] : 0;
    const int64_t sequence = ragged ? ragged.rows.front().count : rows ? ids.shape[1] : 0;
    if (!ragged) ids.expect("input_ids", kInt64, {batch, sequence});
    positions.expect("position_ids", kInt64, ids.shape);
    const int64_t results = ragged.wanted_count > 0 ? ragged.wanted_count : batch;
    std::vector<Draw> draws = draws_.read(call, results, head_->vocab_size());
    const int64_t count = steps > 1 || !draws.empty() ? 1 : count_;
    const Shape cache{layers, ragged ? ragged.pool : batch, attention_.num_kv_heads, places, attention_.head_dim};
    const Shape weights{layers, cache[1], attention_.num_kv_heads, places};
    key.expect("past_key", element_, cache);
    value.expect("past_value", element_, cache);
    dt.expect("past_dt", element_, weights);
    if (bounded_) given(kPosition).expect("past_position", kInt64, weights);

    AttentionIO io;
    if (ragged) {
      io = ragged_io(element_, ragged, bounded_ ? positions : given(kSlot), bounded_);
      if (given(kMask).shape.elements() > 0) throw Error("attention_mask is not empty: a ragged call has no padding.");
    } else {
      AttentionInputs inputs;
      inputs.attention_mask = given(kMask);
      inputs.cos = inputs.sin = {element_, {batch, sequence, attention_.head_dim / 2}, nullptr};  // made by the kernel
      inputs.past_key = first(key);
      inputs.past_value = first(value);
      inputs.past_dt = first(dt);
      inputs.kind = bounded_ ? CacheKind::bounded : CacheKind::fixed;
      if (bounded_) {
        inputs.past_position = first(given(kPosition));
        inputs.position_ids = positions;
      } else {
        inputs.cache_position = given(kSlot);
      }
      io = attention_io(attention_, element_, batch, sequence, inputs);
    }
    io.past = io.slots = places;
    io.past_key = key.data;
    io.past_value = value.data;
    io.past_dt = dt.data;
    if (bounded_) io.past_position = given(kPosition).as<int64_t>();
    check_room(io, steps);
    check_ids(ids);
    DecodeCall decode;
    decode.token_ids = static_cast<int64_t*>(call.output(0, {results, steps, count}));
    decode.token_logits = static_cast<float*>(call.output(1, {results, steps, count}));
    io.present_key = call.output(2, cache);
    io.present_value = call.output(3, cache);
    io.present_dt = call.output(4, weights);
    if (bounded_) io.present_position = static_cast<int64_t*>(call.output(5, weights));
    if (batch == 0) return;
    if (!decode.token_ids || !decode.token_logits || !io.present_key || !io.present_value || !io.present_dt ||
        (bounded_ && !io.present_position))
      throw Error("No output can be left out.");
    if (ragged && (io.present_key != io.past_key || io.present_value != io.past_value || io.present_dt != io.past_dt ||
                   io.present_position != io.past_position))
      throw Error("A ragged call writes its pool in place: present_* must be the memory of past_*.");
    decode.io.assign(static_cast<size_t>(layers), io);
    const auto numbers = static_cast<size_t>(weights.elements() / layers);
    for (size_t layer = 0; layer < decode.io.size(); ++layer) place(decode.io[layer], io, layer * numbers);
    decode.ids = ids.as<int64_t>();
    decode.positions = positions.as<int64_t>();
    decode.steps = steps;
    decode.count = count;
    decode.wanted = ragged.wanted;
    decode.wanted_count = ragged.wanted_count;
    decode.rope_lengths = ragged.rope_lengths;
    decode.draws = std::move(draws);
    if (told_) decode.rope_length = *given(kLength).expect("rope_length", kInt64, {}).as<int64_t>();
    doge::decode_tokens(table_, *angles_, *layers_, *head_, decode, call);
  }

 private:
  // The inputs that are no weights, in their order.
  static constexpr const char* kCalled[] = {"past_key",       "past_value",     "past_dt",     "past_position",
                                            "input_ids",      "position_ids",   "attention_mask",
                                            "cache_position", "rope_length",    "steps",
                                            "offsets",        "slots",          "wanted",      "rope_lengths"};
  enum { kKey, kValue, kDt, kPosition, kIds, kPositions, kMask, kSlot, kLength, kSteps, kOffsets, kSlots, kWanted,
         kLengths, kCalledCount };

  static std::vector<std::string> roles(int64_t layers) {
    std::vector<std::string> roles(std::begin(kCalled), std::end(kCalled));
    for (const std::string& role : DrawInputs::roles()) roles.push_back(role);
    for (const char* role : {"table", "table.scale", "inv_freq", "long_inv_freq", "exponents", "norm", "lm_head", "lm_head.scale"})
      roles.emplace_back(role);
    for (int64_t layer = 0; layer < layers; ++layer)
      for (std::string& role : layer_roles(std::to_string(layer) + ".")) roles.push_back(std::move(role));
    return roles;
  }

  // Throws Error unless the new tokens of all rows find places.
  void check_room(const AttentionIO& io, int64_t steps) const {
    const int64_t places = io.past, heads = attention_.num_kv_heads;
    if (bounded_ && places > attention_.keep_window_size)
      throw Error("The cache has " + std::to_string(places) + " slots, and no more than keep_window_size, " +
                  std::to_string(attention_.keep_window_size) + ", are of use.");
    for (int64_t b = 0; b < io.batch; ++b) {
      const int64_t slot = io.rows ? io.rows[b].slot : b, count = io.rows ? io.rows[b].count : io.sequence;
      if (bounded_) {
        // Every layer holds as many: it has seen the same tokens.
        const int64_t used = used_slots(io.past_position + slot * heads * places, places);
        if (places < attention_.keep_window_size && used > places - count - (steps - 1))
          throw Error(std::to_string(count) + " tokens and " + std::to_string(steps - 1) + " more after " +
                      std::to_string(used) + " do not fit in a cache of " + std::to_string(places) +
                      " slots; with " + std::to_string(attention_.keep_window_size) + " any number would.");
        continue;
      }
      const int64_t place = io.cache_position[b];
      if (place < 0 || place > places - count - (steps - 1))
        throw Error(std::to_string(count) + " tokens and " + std::to_string(steps - 1) + " more from slot " +
                    std::to_string(place) + " on do not fit in a cache of " + std::to_string(places) + " slots.");
    }
  }

  void check_ids(const Tensor& ids) const {
    for (int64_t i = 0; i < ids.shape.elements(); ++i)
      if (const int64_t id = ids.as<int64_t>()[i]; id < 0 || id >= table_.n)
        throw Error("The token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(table_.n) + ".");
  }

  // A layer's part of the cache; `numbers`: of slots in the layers before it.
  void place(AttentionIO& own, const AttentionIO& all, size_t numbers) const {
    const size_t before = numbers * (element_ == kFloat ? 4 : 2), keys = before * static_cast<size_t>(attention_.head_dim);
    if (bounded_) {
      own.past_position = all.past_position + numbers;
      own.present_position = all.present_position + numbers;
    }
    own.past_key = static_cast<const char*>(all.past_key) + keys;
    own.past_value = static_cast<const char*>(all.past_value) + keys;
    own.past_dt = static_cast<const char*>(all.past_dt) + before;
    own.present_key = static_cast<char*>(all.present_key) + keys;
    own.present_value = static_cast<char*>(all.present_value) + keys;
    own.present_dt = static_cast<char*>(all.present_dt) + before;
  }

  // The first layer's part of a tensor of all layers.
  static Tensor first(const Tensor& all) {
    Tensor part = all;
    part.shape = Shape(all.shape.data() + 1, all.shape.rank() - 1);
    return part;
  }

  ElementType element_;
  bool bounded_ = false, told_ = false, ragged_ = false;
  size_t places_[kCalledCount] = {};
  int64_t count_;
  DrawInputs draws_;
  AttentionConfig attention_;
  Matrix table_;
  std::unique_ptr<RotaryAngles> angles_;
  std::unique_ptr<DecoderLayers> layers_;
  std::unique_ptr<Head> head_;
};

}  // namespace

OpType decode_tokens() {
  const Port element{kElement};
  return {"DecodeTokens",
          {element, {kUndefined, kVariadic}},
          {{kInt64}, {kFloat}, element, element, element, {kInt64, kOptional}},
          [](Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Decoder>(node); }};
}

}  // namespace doge::ort
