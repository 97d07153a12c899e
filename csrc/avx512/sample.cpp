// The AVX-512 variant of sample.h.
#define GALLEY_AVX512
#include "sample_kernel.h"
