// The AVX2 variant of quantize_variants.h.
#define GALLEY_AVX2
#include "quantize_kernel.h"
