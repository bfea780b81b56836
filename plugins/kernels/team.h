// Several threads working through the phases of one operator.
//
// Every worker calls the same `phase` calls in the same order. A phase is a number of chunks; a worker takes
// the next one that nobody has taken, and leaves when all are done. It waits only for chunks that a running
// thread has taken, so one thread alone comes through, and one that arrives late finds nothing left to do.
// Who computes a chunk changes nothing in it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

#include "doge_kernels.h"

namespace doge {

class Team {
 public:
  static constexpr int kPhases = 24;

  // Runs body(worker) on up to `most` threads; a worker keeps its own count of phases.
  class Worker {
   public:
    explicit Worker(Team& team) : team_(team) {}
    template <class F>
    void phase(int64_t chunks, F&& chunk) {
      Counter& counter = team_.counters_[next_++];
      if (chunks <= 0) return;
      for (;;) {
        const int64_t c = counter.taken.fetch_add(1, std::memory_order_relaxed);
        if (c >= chunks) break;
        chunk(c);
        counter.done.fetch_add(1, std::memory_order_release);
      }
      for (int spins = 0; counter.done.load(std::memory_order_acquire) < chunks; spins++) {
        if (spins < 20000)
          relax();
        else
          std::this_thread::yield();  // its thread may be waiting for this processor
      }
    }

   private:
    static void relax() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    Team& team_;
    int next_ = 0;
  };

  template <class Body>
  static void run(Threads& threads, size_t most, Body& body) {
    struct Job {
      Team team;
      Body& body;
    } job{{}, body};
    const auto task = [](void* argument, size_t) {
      Job& own = *static_cast<Job*>(argument);
      Worker worker(own.team);
      own.body(worker);
    };
    const size_t count = threads.count() < most ? threads.count() : most;
    if (count <= 1)
      task(&job, 0);
    else
      threads.run(task, &job, count);
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> taken{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  Counter counters_[kPhases];
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
