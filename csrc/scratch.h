// Scratch memory of the calling thread, shared by all kernels that run on it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace galley {

// At least `floats` floats, aligned to 64 bytes, valid until the thread's next call. The contents
// are undefined. All ops share one buffer, which keeps it in the thread's cache.
float* thread_scratch(int64_t floats);

}  // namespace galley
