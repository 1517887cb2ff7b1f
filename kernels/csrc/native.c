/* Version and processor support, which the loader reads first. */

#include "numbers.h"

/* Increased whenever the signature of an exported function changes; libraries of another version are not used. */
EXPORT int tersely_abi(void) { return 3; }

/* The best vector instructions of this machine. */
EXPORT int tersely_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PORTABLE;
}
