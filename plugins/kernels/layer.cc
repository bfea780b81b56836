#include "layer.h"

#include <algorithm>
#include <cstring>

#include "experts.h"
#include "half.h"

namespace doge {
namespace {

constexpr int64_t kTileRows = 48;  // rows that meet a panel at once: they stay in the nearest cache
constexpr int64_t kNormRows = 8;
constexpr int64_t kExpertTokens = 4;
constexpr int64_t kFewToMix = 2;  // rows whose experts one worker takes beside the others

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Scratch<float>& scratch(int which) {
  thread_local Scratch<float> memory[4];
  return memory[which];
}
enum { kOwnFloats, kOwnBytes, kOwnHeads, kTile };

}  // namespace

LayerParts::LayerParts(const LayerConfig& c, const LayerWeights& w)
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

LayerJob::LayerJob(const LayerParts& parts, const AttentionIO& io, const void* hidden, void* output, Arena& arena)
    : p_(parts), rows_(io.tokens()), dtype_(io.dtype), in_(hidden), out_(output) {
  const AttentionConfig& a = p_.config.attention;
  width_ = a.num_heads * a.head_dim;
  kv_width_ = a.num_kv_heads * a.head_dim;
  if (p_.config.routing.num_keys > 0) {
    keys_ = p_.config.routing.num_keys;
    chosen_ = p_.config.routing.num_experts_per_tok;
  }
  const size_t input = input_.plan({&p_.q.weight, &p_.k.weight, &p_.v.weight});
  const size_t attention = attention_.plan({&p_.o.weight});
  const size_t post = post_.plan({&p_.gate.weight, &p_.up.weight, &p_.router});
  const size_t down = down_.plan({&p_.down.weight});
  if (rows_ > kFew) {  // one kind of digits at a time is alive, so they share the memory
    const size_t bytes = std::max(std::max(input, attention), std::max(post, down)) * static_cast<size_t>(rows_);
    auto* digits = reinterpret_cast<uint8_t*>(arena.take(static_cast<int64_t>(bytes / 4)));
    for (ActivationRows* each : {&input_, &attention_, &post_, &down_}) each->place(digits, rows_);
  }
  indices_ = reinterpret_cast<int64_t*>(arena.take(2 * chosen_ * rows_));
  mixing_ = arena.take(chosen_ * rows_);
  normed_ = arena.take(p_.hidden * rows_);
  middle_ = arena.take(p_.hidden * rows_);
  q_ = arena.take(width_ * rows_);
  attended_ = arena.take(width_ * rows_);
  k_ = arena.take(kv_width_ * rows_);
  v_ = arena.take(kv_width_ * rows_);
  inner_ = arena.take(p_.inner * rows_);
  logits_ = arena.take(2 * keys_ * rows_);
  const bool direct = dtype_ == Dtype::float32;
  wide_ = direct ? nullptr : arena.take(p_.hidden * rows_);
  hidden_ = direct ? static_cast<const float*>(in_) : wide_;
  result_ = direct ? static_cast<float*>(out_) : arena.take(p_.hidden * rows_);
  job_ = make_attention_job(p_.attention, io, {q_, k_, v_, attended_}, arena);
}

size_t LayerJob::width() const {
  return static_cast<size_t>(std::max<int64_t>(p_.gate.weight.panels(), static_cast<int64_t>(job_->width())));
}

// The order of panels here is that of the phases in `run`.
void LayerJob::announce(const LayerParts& p, const Team::Worker& worker, PrefetchQueue* queue) {
  const auto share = [&](std::initializer_list<const Packed*> matrices) {
    int64_t panels = 0;
    for (const Packed* m : matrices) panels += m->panels();
    int64_t before = 0;
    for (const Packed* m : matrices) {
      const int64_t first = std::max(worker.first(panels), before) - before;
      const int64_t end = std::min(worker.end(panels), before + m->panels()) - before;
      for (int64_t panel = first; panel < end; panel++) m->announce(panel, queue);
      before += m->panels();
    }
    queue->mark();
  };
  share({&p.q.weight, &p.k.weight, &p.v.weight});
  share({&p.o.weight});
  const int64_t gates = p.gate.weight.panels(), all = gates + (p.router.empty() ? 0 : 1);
  for (int64_t chunk = worker.first(all); chunk < worker.end(all); chunk++) {
    const int64_t panel = chunk - (all - gates);
    if (panel < 0) {
      for (int64_t i = 0; i < p.router.panels(); i++) p.router.announce(i, queue);
      continue;
    }
    p.gate.weight.announce(panel, queue);
    p.up.weight.announce(panel, queue);
  }
  queue->mark();
  share({&p.down.weight});
}

template <class F>
void LayerJob::tiles(Team::Worker& worker, size_t mark, int64_t panels, F&& tile) const {
  const int64_t parts = ceil_div(rows_, kTileRows), strip = ceil_div(parts, worker.width()) * panels;
  if (worker.prefetch) worker.prefetch->reached(first_mark + mark);
  // Each worker has rows of its own, as in the other phases: what it reads it wrote itself. Of these it takes all
  // for one panel before the next.
  worker.phase(panels * parts, [&](int64_t c) {
    const int64_t begin = c / strip * strip, rows = std::min(strip, panels * parts - begin) / panels;
    const int64_t first = (begin / panels + (c - begin) % rows) * kTileRows;
    tile((c - begin) / rows, first, std::min(kTileRows, rows_ - first));
  });
}

ActivationRows LayerJob::prepare(Team::Worker& worker, const ActivationRows& planned, const float* from,
                                 const float* norm, float* normed) {
  ActivationRows rows = planned;
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

void LayerJob::write(const PackedLinear& linear, const ActivationRows& x, int64_t panel, int64_t first, int64_t count,
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
void LayerJob::add(const PackedLinear& linear, const ActivationRows& x, int64_t panel, int64_t first, int64_t count,
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
    isa().add_residual(width, residual.data() + at, before + base, row, to + base);
  }
}

void LayerJob::gate_up(const ActivationRows& x, int64_t panel, int64_t first, int64_t count) const {
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

void LayerJob::router_logits(const ActivationRows& x, int64_t panel, int64_t first, int64_t count) const {
  const int64_t n = 2 * keys_, at = panel * kPanel;
  float* tile = scratch(kTile).get(2 * kTileRows * kPanel);
  x.multiply(p_.router, panel, first, count, tile, kPanel);
  for (int64_t r = 0; r < count; r++)
    std::memcpy(logits_ + (first + r) * n + at, tile + r * kPanel, static_cast<size_t>(std::min(kPanel, n - at)) * 4);
}

void LayerJob::mix(const ActivationRows& x, int64_t first, int64_t count) const {
  for (int64_t t = first; t < first + count; t++) {
    int64_t* indices = indices_ + t * chosen_;
    float* mixing = mixing_ + t * chosen_;
    const float* logits = logits_ + (p_.config.routing.per_token ? 2 * t * keys_ : t * keys_);
    route(p_.config.routing, logits, p_.config.routing.per_token ? logits + keys_ : logits_ + (rows_ + t) * keys_,
          indices, mixing);
    for (int64_t e = 0; e < chosen_; e++) row_prefetch(p_.down_embed, indices[e], 0, p_.hidden);
    for (int64_t e = 0; e < chosen_; e++)
      mixing[e] *= activate(p_.config.activation, row_dot(p_.down_embed, indices[e], x.floats + t * p_.hidden));
  }
}

bool LayerJob::mixes_early(const Team::Worker& worker) const {
  const auto bytes = [](const Packed& m) { return static_cast<size_t>(m.panels()) * m.panel_bytes(); };
  const size_t router = bytes(p_.router), all = router + bytes(p_.gate.weight) + bytes(p_.up.weight);
  return keys_ > 0 && rows_ <= kFewToMix && router * static_cast<size_t>(worker.width()) <= all;
}

void LayerJob::run(Team::Worker& worker) {
  if (dtype_ != Dtype::float32)
    worker.phase(1, [&](int64_t) { read_floats(dtype_, in_, 0, rows_ * p_.hidden, wide_); });
  const ActivationRows x = prepare(worker, input_, hidden_, p_.input_norm.data(), normed_);
  const int64_t q_panels = p_.q.weight.panels(), kv_panels = p_.k.weight.panels();
  tiles(worker, 0, q_panels + 2 * kv_panels, [&](int64_t panel, int64_t first, int64_t count) {
    if (panel < q_panels)
      write(p_.q, x, panel, first, count, q_);
    else if (panel < q_panels + kv_panels)
      write(p_.k, x, panel - q_panels, first, count, k_);
    else
      write(p_.v, x, panel - q_panels - kv_panels, first, count, v_);
  });
  job_->run(worker);
  const float* heads = attended_;
  if (job_->in_parts(worker.width())) {
    float* own = scratch(kOwnHeads).get(static_cast<size_t>(width_ * rows_));
    job_->merge_all(worker.width(), own);
    heads = own;
  }
  const ActivationRows attended = prepare(worker, attention_, heads, nullptr, nullptr);
  tiles(worker, 1, p_.o.weight.panels(), [&](int64_t panel, int64_t first, int64_t count) {
    if (panel == 0 && first == 0) job_->commit();
    add(p_.o, attended, panel, first, count, hidden_, p_.input_residual, middle_, false);
  });
  const ActivationRows y = prepare(worker, post_, middle_, p_.post_norm.data(), normed_);
  const int64_t gates = p_.gate.weight.panels(), routers = p_.router.panels();
  if (mixes_early(worker)) {
    tiles(worker, 2, 1 + gates, [&](int64_t chunk, int64_t first, int64_t count) {
      if (chunk > 0) {
        gate_up(y, chunk - 1, first, count);
        return;
      }
      for (int64_t panel = 0; panel < routers; panel++) router_logits(y, panel, first, count);
      mix(y, first, count);
    });
    const int64_t panels = p_.down.weight.panels(), begin = worker.first(panels) * kPanel;
    const int64_t n = std::min(worker.end(panels) * kPanel, p_.hidden) - begin;
    for (int64_t which = 0; which < rows_ * chosen_ && n > 0; which++)
      row_prefetch(p_.up_embed, indices_[which], begin, n);
  } else {
    tiles(worker, 2, gates + (keys_ ? routers : 0), [&](int64_t panel, int64_t first, int64_t count) {
      if (panel < gates)
        gate_up(y, panel, first, count);
      else
        router_logits(y, panel - gates, first, count);
    });
    if (keys_)
      worker.phase(ceil_div(rows_, kExpertTokens), [&](int64_t c) {
        mix(y, c * kExpertTokens, std::min(kExpertTokens, rows_ - c * kExpertTokens));
      });
  }
  const ActivationRows inner = prepare(worker, down_, inner_, nullptr, nullptr);
  tiles(worker, 3, p_.down.weight.panels(), [&](int64_t panel, int64_t first, int64_t count) {
    add(p_.down, inner, panel, first, count, middle_, p_.post_residual, result_, keys_ > 0);
  });
  if (dtype_ != Dtype::float32)
    worker.phase(1, [&](int64_t) { write_floats(dtype_, result_, rows_ * p_.hidden, out_, 0); });
}

}  // namespace doge
