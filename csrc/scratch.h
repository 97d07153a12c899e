// Scratch memory of the calling thread, shared by all kernels that run on it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace galley {

// At least `floats` floats, at a multiple of 64 bytes; good until the thread's next call. Contents
// are whatever was there. One buffer for every op keeps it in the thread's cache.
float* thread_scratch(int64_t floats);

}  // namespace galley
