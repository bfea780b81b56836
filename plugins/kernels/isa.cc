#include "isa.h"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "doge_kernels.h"

namespace doge {
namespace {

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know these two. Whether the system keeps their registers is what avx2
// and amx_allowed() tell.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}
bool has_amx_int8() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 25 & 1) != 0;
}
#elif defined(__aarch64__)
#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }  // HWCAP_ASIMDDP; older headers lack the name
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }    // HWCAP2_I8MM
#elif defined(__APPLE__)  // never run
bool has(const char* feature) {
  int32_t value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

const Isa& choose() {
#if defined(__x86_64__) || defined(__aarch64__)
  const char* asked = std::getenv("DOGE_EXPORT_ISA");
  const auto is = [asked](const char* name) { return asked != nullptr && std::strcmp(asked, name) == 0; };
  if (is("generic")) return isa_generic;
#endif
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool may_avx512 = avx512 && !is("avx2");
#if defined(__linux__)
  if (may_avx512 && !is("avx512") && has_amx_int8() && amx_allowed()) return isa_amx();
#endif
  if (may_avx512) return isa_avx512;
  return avx2 ? isa_avx2 : isa_generic;
#elif defined(__aarch64__)
  if (is("neon") || !has_dotprod()) return isa_neon;
  return is("dotprod") || !has_i8mm() ? isa_dotprod : isa_i8mm;
#else
  return isa_generic;
#endif
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const char* instruction_set() { return isa().name; }

}  // namespace doge
