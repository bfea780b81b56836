// The exported functions: RegisterCustomOps, which gives a session's options the domain `doge`, and
// DogeExportInstructionSet, which says what the kernels use here.
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "op.h"

namespace doge::ort {

namespace {

constexpr ElementType kElements[] = {kFloat, kFloat16, kBfloat16};

// Every operator for every element type. Sessions point into it, so it lives as long as the library.
const std::vector<Op>& operators() {
  static const std::vector<OpType> types = {decoder_layer(), decode_tokens(),   lm_head(),
                                            top_tokens(),    token_embedding(), dynamic_mask_attention(),
                                            expert_routing(), rotary_angles()};
  static const std::vector<Op> all = [] {
    std::vector<Op> ops;
    ops.reserve(types.size() * std::size(kElements));  // the runtime keeps their addresses
    for (const OpType& type : types) {
      bool typed = false;
      for (const Port& port : type.inputs) typed = typed || port.type == kElement;
      for (const ElementType element : kElements) {
        ops.emplace_back(type, element);
        if (!typed) break;  // one entry takes every type
      }
    }
    return ops;
  }();
  return all;
}

// The runtimes that have registered this library: one, but for a process with two copies of it.
struct Registered {
  Runtime runtime;
  CustomOpDomain* domain;
};

class Registry {
 public:
  ~Registry() {
    for (const Registered& entry : entries_) entry.runtime.api->ReleaseCustomOpDomain(entry.domain);
  }

  CustomOpDomain* domain(const Api* api, bool newer) {
    const std::lock_guard lock(mutex_);
    for (const Registered& entry : entries_)
      if (entry.runtime.api == api) return entry.domain;
    entries_.push_back({{api, newer}, nullptr});
    try {
      check(*api, api->CreateCustomOpDomain("doge", &entries_.back().domain));
      for (const Op& op : operators()) check(*api, api->CustomOpDomain_Add(entries_.back().domain, &op));
    } catch (...) {
      if (entries_.back().domain != nullptr) api->ReleaseCustomOpDomain(entries_.back().domain);
      entries_.pop_back();
      throw;
    }
    return entries_.back().domain;
  }

  Runtime runtime(const Api* api) {
    const std::lock_guard lock(mutex_);
    for (const Registered& entry : entries_)
      if (entry.runtime.api == api) return entry.runtime;
    return {api, false};
  }

 private:
  std::mutex mutex_;
  std::vector<Registered> entries_;
};

Registry& registry() {
  static Registry the;
  return the;
}

}  // namespace

Runtime runtime_of(const Api* api) { return registry().runtime(api); }

}  // namespace doge::ort

extern "C" __attribute__((visibility("default"))) const char* DogeExportInstructionSet() {
  return doge::instruction_set();
}

extern "C" __attribute__((visibility("default"))) doge::ort::Status* RegisterCustomOps(
    doge::ort::SessionOptions* options, const doge::ort::ApiBase* base) {
  using namespace doge::ort;
  const Api* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    // CreateStatus has been in its slot since the first version, so that even this can be said.
    const Api* first = base->GetApi(1);
    if (first == nullptr) return nullptr;  // nothing can be said, and nothing is registered
    const std::string text = "doge: onnxruntime " + std::string(base->GetVersionString()) +
                             " is too old: this library needs 1.17 or newer.";
    return first->CreateStatus(kFail, text.c_str());
  }
  return guarded(*api, [&] {
    const bool newer = base->GetApi(kNewerApiVersion) != nullptr;
    check(*api, api->AddCustomOpDomain(options, registry().domain(api, newer)));
  });
}
