// The AVX2 variant of attention.h.
#define GALLEY_AVX2
#include "attention_kernel.h"
