// The AVX2 variant of norm.h.
#define GALLEY_AVX2
#include "norm_kernel.h"
