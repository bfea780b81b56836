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

#include "ahead.h"
#include "doge_kernels.h"
#include "memory.h"

namespace doge {

class Team {
 public:
  static constexpr size_t kPhases = 24, kWorkers = 64;  // the most phases of one layer or of a head

  // One thread's way through the phases.
  class Worker {
   public:
    Worker(Team& team, size_t index) : team_(team), index_(static_cast<int64_t>(index)) {}
    // The chunks that are this worker's before it helps the others: [first, end) of `chunks`.
    int64_t first(int64_t chunks) const { return chunks * index_ / team_.width_; }
    int64_t end(int64_t chunks) const { return chunks * (index_ + 1) / team_.width_; }
    int64_t width() const { return team_.width_; }
    Ahead* ahead = nullptr;  // what to fetch while waiting
    template <class F>
    void phase(int64_t chunks, F&& chunk) {
      const int64_t width = team_.width_;
      Share* shares = team_.shares_ + static_cast<size_t>(next_++ * width);
      if (chunks <= 0) return;
      for (int64_t step = 0; step < width; step++) {
        const int64_t owner = (index_ + step) % width, first = chunks * owner / width;
        const int64_t size = chunks * (owner + 1) / width - first;
        Share& share = shares[owner];
        while (share.taken.load(std::memory_order_relaxed) < size) {
          const int64_t c = share.taken.fetch_add(1, std::memory_order_relaxed);
          if (c >= size) break;
          chunk(first + c);
          share.done.fetch_add(1, std::memory_order_release);
        }
      }
      for (int64_t owner = 0; owner < width; owner++) {
        const int64_t size = chunks * (owner + 1) / width - chunks * owner / width;
        for (int spins = 0; shares[owner].done.load(std::memory_order_acquire) < size; spins++) {
          if (ahead != nullptr && ahead->step()) continue;
          if (spins < 20000)
            relax();
          else
            std::this_thread::yield();  // its thread may be waiting for this processor
        }
      }
    }

   private:
    static void relax() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    Team& team_;
    int64_t index_;
    int64_t next_ = 0;
  };

  // Runs body(worker), of at most `phases` phases, on up to `most` threads.
  template <class Body>
  static void run(Threads& threads, size_t most, Body& body, size_t phases = kPhases) {
    const size_t count = std::max<size_t>(1, std::min({threads.count(), most, kWorkers}));
    struct Job {
      Team team;
      Body& body;
    } job{Team(count, phases), body};
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
  struct alignas(64) Share {  // a line of its own: others only look at it
    std::atomic<int64_t> taken{0}, done{0};
  };
  Team(size_t width, size_t phases) : width_(static_cast<int64_t>(width)) {
    thread_local std::unique_ptr<Share[]> memory;
    thread_local size_t size = 0;
    const size_t needed = phases * width;
    if (size < needed) {
      memory.reset(new Share[needed]);
      size = needed;
    }
    shares_ = memory.get();
    for (size_t i = 0; i < needed; i++) {
      shares_[i].taken.store(0, std::memory_order_relaxed);
      shares_[i].done.store(0, std::memory_order_relaxed);
    }
  }
  int64_t width_;
  Share* shares_ = nullptr;
};

}  // namespace doge
