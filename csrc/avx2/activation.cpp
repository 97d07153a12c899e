// The AVX2 variant of activation.h.
#define GALLEY_AVX2
#include "activation_kernel.h"
