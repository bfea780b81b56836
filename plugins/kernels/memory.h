// Memory: of a thread, from call to call, and of packed weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace doge {

// For what is read once a token: in huge pages where the system has them, since a walk through 13 MB of small
// ones asks for a page every 64 lines. Large blocks are shared, and live as long as anyone uses a part.
std::shared_ptr<uint8_t> weight_memory(size_t bytes);

// `bytes` of the calling thread, 64 bytes aligned, contents undefined; the next call may move them.
uint8_t* thread_bytes(size_t bytes);

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

// Memory of one thread that a call takes in pieces; the next call clears it and takes the same again.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }
  float* take(int64_t n);  // 64 bytes aligned, contents undefined
  void clear();

 private:
  static constexpr size_t kKeep = 1 << 22;  // floats: a long prefill's memory is not kept for ever
  struct Block {
    float* data;
    size_t size;
  };
  void release();
  std::vector<Block> blocks_;
  size_t used_ = 0, taken_ = 0;  // of the last block, and of all
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
