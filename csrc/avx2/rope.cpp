// The AVX2 variant of rope.h.
#define GALLEY_AVX2
#include "rope_kernel.h"
