// The AVX-512 variant of rope.h.
#define GALLEY_AVX512
#include "rope_kernel.h"
