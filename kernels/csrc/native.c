/* What the loader asks of the library before anything else. */

#include "numbers.h"

/* Raised with every change of what an exported function takes: an older library is then left alone. */
EXPORT int tersely_abi(void) { return 3; }

/* The best kind of vectors on this machine. */
EXPORT int tersely_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PORTABLE;
}
