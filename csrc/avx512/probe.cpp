// The AVX-512 variant of probe.h.
#define GALLEY_AVX512
#include "probe_kernel.h"
