// The AVX-512 variant of attention.h.
#define GALLEY_AVX512
#include "attention_kernel.h"
