// Arguments shared by the ops `rope`, `write_kv` and `rope_kv`.
#pragma once
#include "rope.h"

namespace galley {

// Whether the kind is f32 (true) or bf16 (false); throws std::invalid_argument for any other.
bool is_f32_argument(const Args& args, const char* name);
// From head_dim, rot_dim, style and table.
Rotation rotation_arguments(const Args& args);

}  // namespace galley
