// The AVX-512 variant of quantize_variants.h.
#define GALLEY_AVX512
#include "quantize_kernel.h"
