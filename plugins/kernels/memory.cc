#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace doge {

void* aligned_memory(size_t bytes) {
  void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void free_aligned(void* memory) { std::free(memory); }

uint8_t* thread_bytes(size_t bytes) {
  thread_local Scratch<uint8_t> memory;
  return memory.get(bytes);
}

float* Arena::take(int64_t n) {
  const size_t wanted = (static_cast<size_t>(n) + 15) / 16 * 16;
  if (blocks_.empty() || blocks_.back().size - used_ < wanted) {
    const size_t size = std::max<size_t>(wanted, 1 << 12);
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back({static_cast<float*>(aligned_memory(size * sizeof(float))), size});
    used_ = 0;
  }
  float* piece = blocks_.back().data + used_;
  used_ += wanted;
  taken_ += wanted;
  return piece;
}

void Arena::clear() {
  const bool large = !blocks_.empty() && blocks_[0].size > kKeep && taken_ < blocks_[0].size / 4;
  const size_t wanted = taken_;
  const bool joined = blocks_.size() > 1;  // next time in one piece
  if (large || joined) release();
  used_ = taken_ = 0;
  if (joined) {
    take(static_cast<int64_t>(wanted));
    used_ = taken_ = 0;
  }
}

void Arena::release() {
  for (const Block& block : blocks_) free_aligned(block.data);
  blocks_.clear();
  used_ = 0;
}

std::shared_ptr<uint8_t> weight_memory(size_t bytes) {
  constexpr size_t kPage = 2 << 20, kBlock = 64 << 20;  // a block's unused end is never touched, and costs nothing
  struct Block {
    uint8_t* data;
    size_t size, used = 0;
    explicit Block(size_t wanted) : size((wanted + kPage - 1) / kPage * kPage) {
      data = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
      if (data == nullptr) throw std::bad_alloc();
#ifdef __linux__
      madvise(data, size, MADV_HUGEPAGE);  // where it is refused, small pages do
#endif
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block() { std::free(data); }
  };
  static std::mutex mutex;
  static std::weak_ptr<Block> current;
  bytes = (bytes + 63) / 64 * 64;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Block> block = current.lock();
  if (!block || block->size - block->used < bytes) {
    block = std::make_shared<Block>(std::max(bytes, kBlock));
    current = block;
  }
  uint8_t* part = block->data + block->used;
  block->used += bytes;
  return {block, part};
}

}  // namespace doge
