// Variants of a kernel, one per instruction set, and the choice between them.
//
//   NAME.h          GALLEY_VARIANTS(declarations)
//   NAME_kernel.h   the definitions, in namespace GALLEY_VARIANT (math_lanes.h)
//   NAME.cpp        includes NAME_kernel.h (the generic variant) and defines the op
//
// CMakeLists.txt makes the other variants: #define GALLEY_AVX2, then NAME_kernel.h; AVX512 likewise.
// Functions that use tiles have one more variant, in NAME_amx.h (GALLEY_TILE_VARIANT, GALLEY_PICK_TILES).
#pragma once
#include "program.h"

// The arguments are declarations; they may hold commas.
#if GALLEY_HAS_X86
#define GALLEY_VARIANTS(...)        \
  namespace generic { __VA_ARGS__ } \
  namespace avx2 { __VA_ARGS__ }    \
  namespace avx512 { __VA_ARGS__ }
#define GALLEY_PICK(function)                         \
  (::galley::isa() >= ::galley::Isa::avx512 ? avx512::function \
   : ::galley::isa() == ::galley::Isa::avx2 ? avx2::function   \
                                            : generic::function)
#define GALLEY_TILE_VARIANT(...) namespace amx { __VA_ARGS__ }
#define GALLEY_PICK_TILES(function) \
  (::galley::isa() == ::galley::Isa::amx ? amx::function : GALLEY_PICK(function))
#else
#define GALLEY_VARIANTS(...) namespace generic { __VA_ARGS__ }
#define GALLEY_PICK(function) generic::function
#define GALLEY_TILE_VARIANT(...)
#define GALLEY_PICK_TILES(function) GALLEY_PICK(function)
#endif
