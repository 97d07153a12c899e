// The AVX-512 variant of linear_variants.h.
#define GALLEY_AVX512
#include "linear_kernel.h"
