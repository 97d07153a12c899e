// The AVX2 variant of probe.h.
#define GALLEY_AVX2
#include "probe_kernel.h"
