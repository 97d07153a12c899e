// The AVX2 variant of linear_variants.h.
#define GALLEY_AVX2
#include "linear_kernel.h"
