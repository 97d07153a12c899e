// The AVX2 variant of sample.h.
#define GALLEY_AVX2
#include "sample_kernel.h"
