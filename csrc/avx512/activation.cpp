// The AVX-512 variant of activation.h.
#define GALLEY_AVX512
#include "activation_kernel.h"
