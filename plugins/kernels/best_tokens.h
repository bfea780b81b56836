// The best of many tokens, by value, of equals the lower id.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace doge {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Token {
  float value;
  int64_t id;
};
// A NaN would be in no order with the others.
inline float number(float value) { return value >= kNone ? value : kNone; }
inline bool better(const Token& a, const Token& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The `count` best of what is pushed, and what may still be among them: cut when it grows too long.
class Best {
 public:
  void reset(size_t count) {
    count_ = count;
    tokens_.clear();
    floor_ = kNone;
  }
  float floor() const { return floor_; }  // what is below it need not be pushed
  void push(float value, int64_t id) {
    tokens_.push_back({value, id});
    if (tokens_.size() >= 4 * count_ + 64) cut();
  }
  void raise(float value, int64_t id) {  // the floor follows at once
    push(value, id);
    cut();
  }
  void push_all(const Best& other) {
    for (const Token& token : other.tokens_) push(token.value, token.id);
  }
  // In order; fewer than `count` where fewer were pushed.
  const std::vector<Token>& sorted() {
    cut();
    std::sort(tokens_.begin(), tokens_.end(), better);
    return tokens_;
  }

 private:
  void cut() {
    if (tokens_.size() < count_) return;
    const auto nth = tokens_.begin() + static_cast<std::ptrdiff_t>(count_) - 1;
    std::nth_element(tokens_.begin(), nth, tokens_.end(), better);
    floor_ = nth->value;
    tokens_.resize(count_);
  }
  size_t count_ = 1;
  float floor_ = kNone;
  std::vector<Token> tokens_;
};

}  // namespace doge
