// The memory that a worker will read next, prefetched while it waits for the others.
//
// One token's weights are read once and in a known order, and a core waits for memory most of the time it
// reads them. The time it waits at the end of a phase is as good: what it prefetches there into its own
// second-level cache it need not wait for later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace doge {

// Ranges of memory in the order in which they will be read, with a mark behind those of each phase.
class PrefetchQueue {
 public:
  void clear() {
    ranges_.clear();
    marks_.clear();
    closed_ = total_ = next_ = done_ = fetched_ = limit_ = 0;
  }
  // `bytes` at `start`, read after all that was added before.
  void add(const void* start, size_t bytes) {
    const auto* from = static_cast<const uint8_t*>(start);
    total_ += bytes;
    if (!ranges_.empty() && ranges_.size() > closed_ && ranges_.back().start + ranges_.back().bytes == from)
      ranges_.back().bytes += bytes;
    else
      ranges_.push_back({from, bytes});
  }
  // What was added since the last mark is one phase's.
  void mark() {
    closed_ = ranges_.size();
    marks_.push_back({closed_, total_});
  }
  // The phase of mark `m` begins: its own reads need no help any more.
  void reached(size_t m) {
    if (m >= marks_.size()) return;
    if (next_ < marks_[m].range) {
      next_ = marks_[m].range;
      done_ = 0;
      fetched_ = marks_[m].bytes;
    }
    limit_ = marks_[m].bytes + kMost;
  }
  // All of it is read once more, from the beginning.
  void again() {
    next_ = done_ = fetched_ = 0;
    limit_ = kMost;
  }
  // Prefetches a little; false where there is nothing more to do now.
  bool step() {
    if (next_ >= ranges_.size() || fetched_ >= limit_) return false;
    const Range& range = ranges_[next_];
    for (int line = 0; line < 4 && done_ < range.bytes; line++, done_ += 64, fetched_ += 64)
      __builtin_prefetch(range.start + done_, 0, 2);
    if (done_ >= range.bytes) {
      next_++;
      done_ = 0;
    }
    return true;
  }

 private:
  static constexpr size_t kMost = 512 << 10;  // bytes beyond the phase under way: within a second-level cache
  struct Range {
    const uint8_t* start;
    size_t bytes;
  };
  struct Mark {
    size_t range, bytes;
  };
  std::vector<Range> ranges_;
  std::vector<Mark> marks_;
  size_t closed_ = 0, total_ = 0;
  size_t next_ = 0, done_ = 0, fetched_ = 0, limit_ = 0;  // done_: bytes of the range `next_`
};

}  // namespace doge
