// A whole decoder layer as one operator: norms, projections, attention, feed-forward, experts, residuals.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "experts.h"
#include "half.h"
#include "packed.h"
#include "team.h"

namespace doge {
namespace {

constexpr int64_t kTileRows = 48;  // rows that meet a panel at once: they stay in the nearest cache
constexpr int64_t kFew = 2;        // so few rows are prepared by every worker for itself
constexpr int64_t kNormRows = 8;
constexpr int64_t kExpertTokens = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[4];
  return memory[which];
}
enum { kShared, kOwnFloats, kOwnBytes, kTile };

// The rows of one input as the matrices of a group want them: as floats, and quantized for each block size.
struct Rows {
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

struct PackedLinear {
  Packed weight;
  Vector bias;
  explicit PackedLinear(const Linear& linear) : weight(linear.weight), bias(linear.bias) {
    if (!bias.empty() && bias.size() != static_cast<size_t>(weight.n()))
      throw Error("A bias has another length than its matrix has outputs.");
  }
};

}  // namespace

struct DecoderLayer::Parts {
  LayerConfig config;
  AttentionParts attention;
  Vector input_norm, post_norm, input_residual, post_residual;
  PackedLinear q, k, v, o, gate, up, down;
  Packed router;
  Matrix down_embed, up_embed;
  int64_t hidden, inner;

  Parts(const LayerConfig& c, const LayerWeights& w)
      : config(c), attention(c.attention, w.attention), input_norm(w.input_layernorm),
        post_norm(w.post_attention_layernorm), input_residual(w.input_residual),
        post_residual(w.post_attention_residual), q(w.q_proj), k(w.k_proj), v(w.v_proj), o(w.o_proj), gate(w.gate_proj),
        up(w.up_proj), down(w.down_proj), hidden(q.weight.k()), inner(gate.weight.n()) {
    const int64_t width = c.attention.num_heads * c.attention.head_dim;
    const int64_t kv_width = c.attention.num_kv_heads * c.attention.head_dim;
    const auto shape = [](const Packed& m, int64_t n, int64_t k, const char* name) {
      if (m.n() != n || m.k() != k)
        throw Error(std::string(name) + " is [" + std::to_string(m.n()) + ", " + std::to_string(m.k()) +
                    "], and the layer makes it [" + std::to_string(n) + ", " + std::to_string(k) + "].");
    };
    shape(q.weight, width, hidden, "q_proj");
    shape(k.weight, kv_width, hidden, "k_proj");
    shape(v.weight, kv_width, hidden, "v_proj");
    shape(o.weight, hidden, width, "o_proj");
    shape(gate.weight, inner, hidden, "gate_proj");
    shape(up.weight, inner, hidden, "up_proj");
    shape(down.weight, hidden, inner, "down_proj");
    for (const Vector* vector : {&input_norm, &post_norm, &input_residual, &post_residual})
      if (vector->size() != static_cast<size_t>(hidden)) throw Error("A norm or residual is not as long as hidden_size.");
    if (c.routing.num_keys > 0) {
      check(c.routing);
      router = Packed(w.router_gate);
      shape(router, 2 * c.routing.num_keys, hidden, "router_gate");
      if (router.quantized()) throw Error("router_gate must not be quantized.");
      down_embed = w.down_embed;
      up_embed = w.up_embed;
      for (const Matrix* table : {&down_embed, &up_embed}) {
        check(*table);
        if (table->k != hidden || table->n < c.routing.num_keys * c.routing.num_keys)
          throw Error("An expert table is [" + std::to_string(table->n) + ", " + std::to_string(table->k) +
                      "], too small for the product keys or not as wide as hidden_size.");
      }
    }
  }
};

namespace {

// One call of a layer. Memory: the calling thread's scratch.
class LayerJob {
 public:
  LayerJob(const DecoderLayer::Parts& parts, const AttentionIO& io, const void* hidden, void* output);
  void run(Team::Worker& worker);
  size_t width() const { return static_cast<size_t>(std::max<int64_t>(ceil_div(p_.inner, kPanel), job_->width())); }
  ~LayerJob() { job_->~AttentionJob(); }

 private:
  // All rows, normalised (where there is a norm) and quantized; a few rows by every worker, in memory of its own.
  Rows prepare(Team::Worker& worker, const Rows& planned, const float* from, const float* norm, float* normed);
  // tile(panel, first, count, out) for every tile of rows of every panel.
  template <class F>
  void tiles(Team::Worker& worker, int64_t panels, F&& tile) const {
    const int64_t parts = ceil_div(rows_, kTileRows);
    worker.phase(panels * parts, [&](int64_t c) {
      const int64_t first = c % parts * kTileRows;
      tile(c / parts, first, std::min(kTileRows, rows_ - first));
    });
  }
  void write(const PackedLinear& linear, const Rows& x, int64_t panel, int64_t first, int64_t count, float* to) const;
  void add(const PackedLinear& linear, const Rows& x, int64_t panel, int64_t first, int64_t count, const float* before,
           const Vector& residual, float* to, bool experts) const;
  void gate_up(const Rows& x, int64_t panel, int64_t first, int64_t count) const;
  void experts(const float* x, int64_t token, int64_t first, int64_t count) const;

  const DecoderLayer::Parts& p_;
  int64_t rows_, width_, kv_width_, keys_ = 0, chosen_ = 0;
  Dtype dtype_;
  const float* hidden_;
  void* out_;
  float *normed_, *q_, *k_, *v_, *attended_, *middle_, *inner_, *logits_, *result_, *mixing_;
  int64_t* indices_;
  Rows input_, attention_, post_, down_;
  alignas(AttentionJob) unsigned char room_[sizeof(AttentionJob)];
  AttentionJob* job_ = nullptr;
};

LayerJob::LayerJob(const DecoderLayer::Parts& parts, const AttentionIO& io, const void* hidden, void* output)
    : p_(parts), rows_(io.batch * io.sequence), dtype_(io.dtype), out_(output) {
  const AttentionConfig& a = p_.config.attention;
  width_ = a.num_heads * a.head_dim;
  kv_width_ = a.num_kv_heads * a.head_dim;
  if (p_.config.routing.num_keys > 0) {
    keys_ = p_.config.routing.num_keys;
    chosen_ = p_.config.routing.num_experts_per_tok;
  }
  // Quantized rows are planned in bytes, everything else in floats.
  const size_t input = input_.plan({&p_.q.weight, &p_.k.weight, &p_.v.weight});
  const size_t attention = attention_.plan({&p_.o.weight});
  const size_t post = post_.plan({&p_.gate.weight, &p_.up.weight, &p_.router});
  const size_t down = down_.plan({&p_.down.weight});
  const auto rows = static_cast<size_t>(rows_);
  const size_t digits = rows_ > kFew ? std::max(std::max(input, attention), std::max(post, down)) * rows / 4 : 0;  // in floats; rows of digits are multiples of 64 bytes
  const int64_t floats = 4 * p_.hidden + 2 * width_ + 2 * kv_width_ + p_.inner + 2 * keys_ + 3 * chosen_;
  float* memory = scratch(kShared).get(static_cast<size_t>(floats * rows_) + digits + 64);
  auto take = [&](int64_t per_row) {
    float* start = memory;
    memory += per_row * rows_;
    return start;
  };
  uint8_t* bytes = reinterpret_cast<uint8_t*>(memory);
  memory += digits;
  // One kind of digits at a time is alive, so they share the memory.
  for (Rows* each : {&input_, &attention_, &post_, &down_})
    if (rows_ > kFew) each->place(bytes, rows_);
  indices_ = reinterpret_cast<int64_t*>(take(2 * chosen_));
  mixing_ = take(chosen_);
  normed_ = take(p_.hidden);
  float* wide = take(p_.hidden);
  middle_ = take(p_.hidden);
  result_ = take(p_.hidden);
  q_ = take(width_);
  attended_ = take(width_);
  k_ = take(kv_width_);
  v_ = take(kv_width_);
  inner_ = take(p_.inner);
  logits_ = take(2 * keys_);
  if (dtype_ == Dtype::float32) {
    hidden_ = static_cast<const float*>(hidden);
    result_ = static_cast<float*>(output);
  } else {
    read_floats(dtype_, hidden, 0, rows_ * p_.hidden, wide);
    hidden_ = wide;
  }
  job_ = new (room_) AttentionJob(p_.attention, io, q_, k_, v_, attended_);
}

Rows LayerJob::prepare(Team::Worker& worker, const Rows& planned, const float* from, const float* norm, float* normed) {
  Rows rows = planned;
  const int64_t k = planned.k;
  if (rows_ <= kFew) {
    if (norm) {
      float* own = scratch(kOwnFloats).get(static_cast<size_t>(rows_ * k));
      for (int64_t r = 0; r < rows_; r++) isa().rms_norm(from + r * k, norm, own + r * k, k, p_.config.epsilon);
      rows.floats = own;
    } else {
      rows.floats = from;
    }
    size_t bytes = 0;
    for (int i = 0; i < rows.kinds; i++) bytes += rows.digits[i].stride;
    rows.place(reinterpret_cast<uint8_t*>(scratch(kOwnBytes).get(bytes * static_cast<size_t>(rows_) / 4 + 16)), rows_);
    for (int64_t r = 0; r < rows_; r++) rows.quantize(r);
    return rows;
  }
  rows.floats = norm ? normed : from;
  worker.phase(ceil_div(rows_, kNormRows), [&](int64_t c) {
    for (int64_t r = c * kNormRows; r < std::min(rows_, (c + 1) * kNormRows); r++) {
      if (norm) isa().rms_norm(from + r * k, norm, normed + r * k, k, p_.config.epsilon);
      rows.quantize(r);
    }
  });
  return rows;
}

void LayerJob::write(const PackedLinear& linear, const Rows& x, int64_t panel, int64_t first, int64_t count,
                     float* to) const {
  const int64_t n = linear.weight.n(), at = panel * kPanel, width = std::min(kPanel, n - at);
  float* tile = scratch(kTile).get(2 * kTileRows * kPanel);
  x.multiply(linear.weight, panel, first, count, tile, kPanel);
  for (int64_t r = 0; r < count; r++) {
    float* row = to + (first + r) * n + at;
    std::memcpy(row, tile + r * kPanel, static_cast<size_t>(width) * 4);
    if (!linear.bias.empty())
      for (int64_t i = 0; i < width; i++) row[i] += linear.bias[static_cast<size_t>(at + i)];
  }
}

// to = residual * before + linear(x) (+ what the experts add)
void LayerJob::add(const PackedLinear& linear, const Rows& x, int64_t panel, int64_t first, int64_t count,
                   const float* before, const Vector& residual, float* to, bool experts) const {
  const int64_t n = linear.weight.n(), at = panel * kPanel, width = std::min(kPanel, n - at);
  float* tile = scratch(kTile).get(2 * kTileRows * kPanel);
  x.multiply(linear.weight, panel, first, count, tile, kPanel);
  for (int64_t r = 0; r < count; r++) {
    float* row = tile + r * kPanel;
    if (!linear.bias.empty())
      for (int64_t i = 0; i < width; i++) row[i] += linear.bias[static_cast<size_t>(at + i)];
    if (experts)
      for (int64_t e = 0; e < chosen_; e++) {
        const int64_t which = (first + r) * chosen_ + e;
        row_axpy(p_.up_embed, indices_[which], mixing_[which], at, width, row);
      }
    const int64_t base = (first + r) * n + at;
    for (int64_t i = 0; i < width; i++) to[base + i] = residual[static_cast<size_t>(at + i)] * before[base + i] + row[i];
  }
}

void LayerJob::gate_up(const Rows& x, int64_t panel, int64_t first, int64_t count) const {
  const int64_t n = p_.inner, at = panel * kPanel, width = std::min(kPanel, n - at);
  float* gate = scratch(kTile).get(2 * kTileRows * kPanel);
  float* up = gate + kTileRows * kPanel;
  x.multiply(p_.gate.weight, panel, first, count, gate, kPanel);
  x.multiply(p_.up.weight, panel, first, count, up, kPanel);
  for (int64_t r = 0; r < count; r++) {
    float *g = gate + r * kPanel, *u = up + r * kPanel;
    for (int64_t i = 0; i < width && !p_.gate.bias.empty(); i++) g[i] += p_.gate.bias[static_cast<size_t>(at + i)];
    for (int64_t i = 0; i < width && !p_.up.bias.empty(); i++) u[i] += p_.up.bias[static_cast<size_t>(at + i)];
    activate_mul(p_.config.activation, kPanel, g, u);
    std::memcpy(inner_ + (first + r) * n + at, g, static_cast<size_t>(width) * 4);
  }
}

// mixing of experts [first, first + count) of a token: activation(x . down) * weight.
void LayerJob::experts(const float* x, int64_t token, int64_t first, int64_t count) const {
  for (int64_t e = first; e < first + count; e++) {
    const int64_t which = token * chosen_ + e;
    mixing_[which] *= activate(p_.config.activation, row_dot(p_.down_embed, indices_[which], x));
  }
}

void LayerJob::run(Team::Worker& worker) {
  const Rows x = prepare(worker, input_, hidden_, p_.input_norm.data(), normed_);
  const int64_t q_panels = p_.q.weight.panels(), kv_panels = p_.k.weight.panels();
  tiles(worker, q_panels + 2 * kv_panels, [&](int64_t panel, int64_t first, int64_t count) {
    if (panel < q_panels)
      write(p_.q, x, panel, first, count, q_);
    else if (panel < q_panels + kv_panels)
      write(p_.k, x, panel - q_panels, first, count, k_);
    else
      write(p_.v, x, panel - q_panels - kv_panels, first, count, v_);
  });
  job_->run(worker);
  const Rows attended = prepare(worker, attention_, attended_, nullptr, nullptr);
  tiles(worker, p_.o.weight.panels(), [&](int64_t panel, int64_t first, int64_t count) {
    add(p_.o, attended, panel, first, count, hidden_, p_.input_residual, middle_, false);
  });
  const Rows y = prepare(worker, post_, middle_, p_.post_norm.data(), normed_);
  const int64_t gates = p_.gate.weight.panels();
  tiles(worker, gates + (keys_ ? p_.router.panels() : 0), [&](int64_t panel, int64_t first, int64_t count) {
    if (panel < gates) {
      gate_up(y, panel, first, count);
      return;
    }
    const int64_t n = 2 * keys_, at = (panel - gates) * kPanel;
    float* tile = scratch(kTile).get(2 * kTileRows * kPanel);
    y.multiply(p_.router, panel - gates, first, count, tile, kPanel);
    for (int64_t r = 0; r < count; r++)
      std::memcpy(logits_ + (first + r) * n + at, tile + r * kPanel, static_cast<size_t>(std::min(kPanel, n - at)) * 4);
  });
  if (keys_) {
    // A single token's experts are shared out among the workers; of many tokens each takes whole ones.
    const bool few = rows_ <= kFew;
    worker.phase(ceil_div(rows_, few ? 1 : kExpertTokens), [&](int64_t c) {
      const int64_t size = few ? 1 : kExpertTokens;
      for (int64_t t = c * size; t < std::min(rows_, (c + 1) * size); t++) {
        const float* first = logits_ + (p_.config.routing.per_token ? 2 * t * keys_ : t * keys_);
        const float* second = p_.config.routing.per_token ? first + keys_ : logits_ + (rows_ + t) * keys_;
        route(p_.config.routing, first, second, indices_ + t * chosen_, mixing_ + t * chosen_);
        if (!few) experts(y.floats + t * p_.hidden, t, 0, chosen_);
      }
    });
    if (few) {
      const int64_t parts = ceil_div(chosen_, kExpertTokens);
      worker.phase(rows_ * parts, [&](int64_t c) {
        const int64_t first = c % parts * kExpertTokens;
        experts(y.floats + c / parts * p_.hidden, c / parts, first, std::min(kExpertTokens, chosen_ - first));
      });
    }
  }
  const Rows inner = prepare(worker, down_, inner_, nullptr, nullptr);
  tiles(worker, p_.down.weight.panels(), [&](int64_t panel, int64_t first, int64_t count) {
    add(p_.down, inner, panel, first, count, middle_, p_.post_residual, result_, keys_ > 0);
  });
  if (dtype_ != Dtype::float32)
    worker.phase(1, [&](int64_t) { write_floats(dtype_, result_, rows_ * p_.hidden, out_, 0); });
}

}  // namespace

DecoderLayer::DecoderLayer(const LayerConfig& config, const LayerWeights& weights)
    : parts_(std::make_unique<Parts>(config, weights)) {}
DecoderLayer::~DecoderLayer() = default;
int64_t DecoderLayer::hidden_size() const { return parts_->hidden; }

void DecoderLayer::run(const AttentionIO& io, const void* hidden, void* output, Threads& threads) const {
  if (io.batch * io.sequence == 0) return;
  LayerJob job(*parts_, io, hidden, output);
  auto body = [&](Team::Worker& worker) { job.run(worker); };
  Team::run(threads, job.width(), body);
}

}  // namespace doge
