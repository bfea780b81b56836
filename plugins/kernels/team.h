// Several threads working through the phases of one operator.
//
// Every worker calls the same `phase` calls in the same order. A phase is a number of chunks, of which each
// worker has a share; when its own is taken it helps the others, and it leaves when all are done. It waits only
// for chunks that a running thread has taken, so one thread alone comes through, and one that arrives late
// finds nothing left to do. Who computes a chunk changes nothing in it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "prefetch_queue.h"
#include "doge_kernels.h"
#include "memory.h"

namespace doge {

class Team {
 public:
  static constexpr size_t kWorkers = 64;

  // One thread's way through the phases.
  class Worker {
   public:
    Worker(Team& team, size_t index) : team_(team), index_(static_cast<int64_t>(index)) {}
    // The chunks that are this worker's before it helps the others: [first, end) of `chunks`.
    int64_t first(int64_t chunks) const { return chunks * index_ / team_.width_; }
    int64_t end(int64_t chunks) const { return chunks * (index_ + 1) / team_.width_; }
    int64_t width() const { return team_.width_; }
    size_t index() const { return static_cast<size_t>(index_); }
    uint64_t next_phase() const { return phase_ + 1; }  // its number: the same for all who are at the same place
    PrefetchQueue* prefetch = nullptr;  // what to fetch while waiting
    template <class F>
    void phase(int64_t chunks, F&& chunk) {
      const int64_t width = team_.width_;
      const uint64_t own = ++phase_;
      if (chunks <= 0) return;
      for (int64_t step = 0; step < width; step++) {
        const int64_t owner = (index_ + step) % width, first = chunks * owner / width;
        const int64_t size = chunks * (owner + 1) / width - first;
        Share& share = team_.shares_[owner];
        for (int64_t c; (c = share.take(own, size)) >= 0;) {
          chunk(first + c);
          share.finish(own);
        }
      }
      for (int64_t owner = 0; owner < width; owner++) {
        const int64_t size = chunks * (owner + 1) / width - chunks * owner / width;
        wait([&] { return team_.shares_[owner].is_done(own, size); });
      }
    }

    // Phases that use the same memory again are stages, numbered from 0 on. A stage begins when all who were in
    // the one before have left it: one of them runs begin(), and all go on. Returns the stage that this worker is
    // in now, a later one than `stage` where the others are further on; every phase of it is still to come.
    template <class F>
    int64_t enter(int64_t stage, F&& begin) {
      std::atomic<uint64_t>& state = team_.stage_;
      if (inside_) state.fetch_sub(kOneInside, std::memory_order_release);
      inside_ = true;
      int64_t entered = -1;
      wait([&] {
        uint64_t now = state.load(std::memory_order_acquire);
        const auto latest = static_cast<int64_t>(now / kStage) - 1;
        if (now & kOpening) return false;
        if (latest >= stage) {
          if (!state.compare_exchange_weak(now, now + kOneInside, std::memory_order_acquire)) return false;
          phase_ = team_.first_phase_;
          entered = latest;
          return true;
        }
        if (now % kStage != 0 || !state.compare_exchange_strong(now, now + kStage + kOpening, std::memory_order_acquire))
          return false;
        begin();
        team_.first_phase_ = phase_;
        entered = stage;
        state.store(static_cast<uint64_t>(stage + 1) * kStage + kOneInside, std::memory_order_release);
        return true;
      });
      return entered;
    }

   private:
    template <class Done>
    void wait(Done&& done) {
      for (int spins = 0; !done(); spins++) {
        if (prefetch != nullptr && prefetch->step()) continue;
        if (spins >= 20000) {
          std::this_thread::yield();  // its thread may be waiting for this processor
          continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("isb" ::: "memory");  // most processors take `yield` for nothing at all
#endif
      }
    }
    Team& team_;
    int64_t index_;
    uint64_t phase_ = 0;
    bool inside_ = false;
  };

  // Runs body(worker) on up to `most` threads.
  template <class Body>
  static void run(Threads& threads, size_t most, Body& body) {
    const size_t count = std::max<size_t>(1, std::min({threads.count(), most, kWorkers}));
    struct Job {
      Team team;
      Body& body;
    } job{Team(count), body};
    const auto task = [](void* argument, size_t index) {
      Job& own = *static_cast<Job*>(argument);
      Worker worker(own.team, index);
      own.body(worker);
    };
    if (count == 1)
      task(&job, 0);
    else
      threads.run(task, &job, count);
  }

 private:
  // A worker's chunks of one phase after another: how many are taken, and how many done, beside the phase's
  // number. A line of its own: others only look at it.
  class alignas(64) Share {
   public:
    // A chunk of `phase`, of which there are `size`; -1: none is left.
    int64_t take(uint64_t phase, int64_t size) {
      uint64_t now = taken_.load(std::memory_order_relaxed);
      for (;;) {
        const uint64_t count = now >> kBits == phase ? now & kCount : 0;
        if (now >> kBits > phase || count >= static_cast<uint64_t>(size)) return -1;
        if (taken_.compare_exchange_weak(now, phase << kBits | (count + 1), std::memory_order_relaxed))
          return static_cast<int64_t>(count);
      }
    }
    void finish(uint64_t phase) {
      uint64_t now = done_.load(std::memory_order_relaxed);
      while (!done_.compare_exchange_weak(now, now >> kBits == phase ? now + 1 : phase << kBits | 1,
                                          std::memory_order_acq_rel, std::memory_order_relaxed)) {
      }
    }
    bool is_done(uint64_t phase, int64_t size) const {
      const uint64_t now = done_.load(std::memory_order_acquire);
      return size == 0 || now >> kBits > phase || (now >> kBits == phase && (now & kCount) >= static_cast<uint64_t>(size));
    }

   private:
    static constexpr int kBits = 32;  // chunks of a phase, and phases of a team
    static constexpr uint64_t kCount = (uint64_t{1} << kBits) - 1;
    std::atomic<uint64_t> taken_{0}, done_{0};
  };
  static constexpr uint64_t kOpening = 1, kOneInside = 2, kStage = 256;  // of stage_: workers inside, and the stage's number + 1

  explicit Team(size_t width) : width_(static_cast<int64_t>(width)), shares_(new Share[width]) {}
  int64_t width_;
  std::unique_ptr<Share[]> shares_;
  std::atomic<uint64_t> stage_{0};
  uint64_t first_phase_ = 0;  // what a worker's last phase was before the stage
};

}  // namespace doge
