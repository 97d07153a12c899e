// The AVX-512 variant of norm.h.
#define GALLEY_AVX512
#include "norm_kernel.h"
