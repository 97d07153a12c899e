// Scratch memory of a thread. See scratch.h.
#include "scratch.h"

#include <memory>
#include <new>

namespace galley {
namespace {

constexpr std::align_val_t kLine{64};

struct Buffer {
  float* data = nullptr;
  int64_t size = 0;
  ~Buffer() { ::operator delete(data, kLine); }
};

}  // namespace

float* thread_scratch(int64_t floats) {
  thread_local Buffer buffer;
  if (buffer.size < floats) {
    ::operator delete(buffer.data, kLine);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = static_cast<float*>(::operator new(floats * sizeof(float), kLine));
    buffer.size = floats;
  }
  return buffer.data;
}

}  // namespace galley
