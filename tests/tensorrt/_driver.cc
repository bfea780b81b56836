// A stand-in for libcuda.so.1 in tests alone: the functions that doge_export/runtime/tensorrt/driver.py calls, on the host's memory.
// CUDA's own header declares them, so that a function of another type does not compile.
//
// Work on a stream is done when somebody waits for it, and in a capture it is not done but kept: what the host
// reads too early, or changes too late, or frees, is wrong here as it would be on a GPU.

#include <cuda.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

namespace {

using Work = std::function<CUresult()>;

struct Stream {
  bool capturing = false;
  std::vector<Work> queue, captured;
};

struct Graph {
  std::vector<Work> work;
};

int devices = 1, capability = 89;
size_t most = SIZE_MAX, held = 0;
int captures = 0, launches = 0, graphs = 0;
std::map<uintptr_t, size_t> device, host;
thread_local bool entered = false;

Stream* of(CUstream stream) { return reinterpret_cast<Stream*>(stream); }

bool inside(const std::map<uintptr_t, size_t>& memory, uintptr_t at, size_t size) {
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return false;
  auto [start, room] = *--after;
  return at + size <= start + room;
}

CUresult put(CUstream stream, Work work) {
  if (!entered) return CUDA_ERROR_INVALID_CONTEXT;
  auto& to = of(stream)->capturing ? of(stream)->captured : of(stream)->queue;
  to.push_back(std::move(work));
  return CUDA_SUCCESS;
}

CUresult move(uintptr_t target, uintptr_t source, size_t size, bool from_device, bool to_device) {
  if (from_device && !inside(device, source, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
  if (to_device && !inside(device, target, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
  std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size);
  return CUDA_SUCCESS;
}

// What is copied in a capture is copied long after: the host's memory must be page-locked, and so it stays.
bool may(CUstream stream, const void* pointer, size_t size) {
  return !of(stream)->capturing || inside(host, reinterpret_cast<uintptr_t>(pointer), size);
}

}  // namespace

extern "C" {

// What tests set and read.
void fake_device(int count, int number, size_t bytes) { devices = count, capability = number, most = bytes; }
size_t fake_held() { return held; }
int fake_captures() { return captures; }
int fake_launches() { return launches; }
int fake_graphs() { return graphs; }
int fake_inside(uintptr_t at, size_t size) { return inside(device, at, size); }
int fake_capturing(CUstream stream) { return of(stream)->capturing; }

CUresult cuInit(unsigned int) { return devices ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int* version) { return *version = 13020, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* found, int ordinal) {
  return *found = 7, ordinal < devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int length, CUdevice number) {
  if (number != 7) return CUDA_ERROR_INVALID_DEVICE;
  std::strncpy(name, "Toaster 3000", length);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice number) {
  if (number != 7) return CUDA_ERROR_INVALID_DEVICE;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = capability / 10;
  else if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = capability % 10;
  else return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  return *context = reinterpret_cast<CUcontext>(&devices), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  entered = context == reinterpret_cast<CUcontext>(&devices);
  return entered ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuMemGetInfo(size_t* free, size_t* total) {
  if (!entered) return CUDA_ERROR_INVALID_CONTEXT;
  return *total = most, *free = most - held, CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  if (!entered) return CUDA_ERROR_INVALID_CONTEXT;
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  if (size > most - held) return CUDA_ERROR_OUT_OF_MEMORY;
  void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0x7f, size);  // nobody finds zeros that were not written
  *address = reinterpret_cast<uintptr_t>(memory);
  device[*address] = size, held += size;
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) {
  auto found = device.find(address);
  if (!entered || found == device.end()) return CUDA_ERROR_INVALID_VALUE;
  held -= found->second;
  std::memset(reinterpret_cast<void*>(address), 0x7f, found->second);
  std::free(reinterpret_cast<void*>(address));
  device.erase(found);
  return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void** address, size_t size, unsigned int) {
  if (!entered) return CUDA_ERROR_INVALID_CONTEXT;
  *address = std::malloc(size);
  host[reinterpret_cast<uintptr_t>(*address)] = size;
  return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void* address) {
  if (!host.erase(reinterpret_cast<uintptr_t>(address))) return CUDA_ERROR_INVALID_VALUE;
  std::free(address);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t size, CUstream stream) {
  if (!may(stream, source, size)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return put(stream, [=] { return move(target, reinterpret_cast<uintptr_t>(source), size, false, true); });
}
CUresult cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t size, CUstream stream) {
  if (!may(stream, target, size)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return put(stream, [=] { return move(reinterpret_cast<uintptr_t>(target), source, size, true, false); });
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
  return put(stream, [=] { return move(target, source, size, true, true); });
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream stream) {
  return put(stream, [=] {
    if (!inside(device, target, size)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    std::memset(reinterpret_cast<void*>(target), value, size);
    return CUDA_SUCCESS;
  });
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  return put(stream, [=] { return function(data), CUDA_SUCCESS; });
}
CUresult cuStreamCreate(CUstream* stream, unsigned int) {
  if (!entered) return CUDA_ERROR_INVALID_CONTEXT;
  return *stream = reinterpret_cast<CUstream>(new Stream), CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
  if (of(stream)->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  std::vector<Work> queue;
  queue.swap(of(stream)->queue);
  for (auto& work : queue)
    if (CUresult code = work(); code != CUDA_SUCCESS) return code;
  return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  if (of(stream)->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  return of(stream)->capturing = true, CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  if (!of(stream)->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  auto made = new Graph{std::move(of(stream)->captured)};
  of(stream)->captured.clear();
  of(stream)->capturing = false;
  ++captures;
  return *graph = reinterpret_cast<CUgraph>(made), CUDA_SUCCESS;
}
CUresult cuGraphInstantiate(CUgraphExec* made, CUgraph graph, unsigned long long) {
  ++graphs;
  return *made = reinterpret_cast<CUgraphExec>(new Graph(*reinterpret_cast<Graph*>(graph))), CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  ++launches;
  for (auto& work : reinterpret_cast<Graph*>(graph)->work)
    if (CUresult code = put(stream, work); code != CUDA_SUCCESS) return code;
  return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) { return delete reinterpret_cast<Graph*>(graph), CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec graph) {
  return --graphs, delete reinterpret_cast<Graph*>(graph), CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = code == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected" : "the fake driver's words";
  return CUDA_SUCCESS;
}

}  // extern "C"
