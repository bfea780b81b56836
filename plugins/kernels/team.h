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

#include "doge_kernels.h"

namespace doge {

class Team {
 public:
  static constexpr size_t kPhases = 24, kWorkers = 64;

  // One thread's way through the phases.
  class Worker {
   public:
    Worker(Team& team, size_t index) : team_(team), index_(static_cast<int64_t>(index)) {}
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
  struct alignas(64) Share {  // a line of its own: others only look at it
    std::atomic<int64_t> taken{0}, done{0};
  };
  explicit Team(size_t width) : width_(static_cast<int64_t>(width)) {
    thread_local std::unique_ptr<Share[]> memory;
    thread_local size_t size = 0;
    if (size < kPhases * width) {
      memory.reset(new Share[kPhases * width]);
      size = kPhases * width;
    }
    shares_ = memory.get();
    for (size_t i = 0; i < kPhases * width; i++) {
      shares_[i].taken.store(0, std::memory_order_relaxed);
      shares_[i].done.store(0, std::memory_order_relaxed);
    }
  }
  int64_t width_;
  Share* shares_ = nullptr;
};

// Memory of one thread that lasts from call to call: `get` gives `n` elements, contents undefined.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free_memory(); }
  T* get(size_t n);

 private:
  void free_memory();
  T* data_ = nullptr;
  size_t size_ = 0;
};

void* aligned_memory(size_t bytes);  // 64 bytes aligned; throws std::bad_alloc
void free_aligned(void* memory);

template <class T>
T* Scratch<T>::get(size_t n) {
  constexpr size_t kKeep = 1 << 22;  // a long prefill's memory is not kept for ever
  if (n > size_ || (size_ > kKeep && n < size_ / 4)) {
    free_memory();
    data_ = static_cast<T*>(aligned_memory((n + 64) * sizeof(T)));
    size_ = n;
  }
  return data_;
}
template <class T>
void Scratch<T>::free_memory() {
  if (data_) free_aligned(data_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace doge
