#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "doge_kernels.h"

namespace doge {
namespace {

const Isa& choose() {
#if defined(__x86_64__)
  const char* asked = std::getenv("DOGE_EXPORT_ISA");
  const auto is = [asked](const char* name) { return asked != nullptr && std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool may_avx512 = avx512 && !is("avx2") && !is("generic");
#if defined(__linux__)
  if (may_avx512 && !is("avx512") && __builtin_cpu_supports("amx-int8") && amx_allowed()) return isa_amx();
#endif
  if (may_avx512) return isa_avx512;
  if (avx2 && !is("generic")) return isa_avx2;
#endif
  return isa_generic;
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const char* instruction_set() { return isa().name; }

}  // namespace doge
