#!/bin/sh
# Builds the kernels with sanitizers, beside the real ones, and runs their tests over that build.
#
#   run.sh address     AddressSanitizer and UndefinedBehaviorSanitizer: all tests, and those of
#                      whole models once more for each instruction set
#   run.sh thread      ThreadSanitizer: the tests, then the pool's own stress program
#
# Further arguments go to pytest: files, if not all of tests/kernels is to run. With ONLY, a regular
# expression of paths (AVX512/linear, AMX/, delta_rule …), those sources alone are watched, so that the
# rest is built in a minute.
set -e
cd "$(dirname "$0")/../../.."
python="$(pwd)/.venv/bin/python"
which="$1"
shift
build="build/sanitize-$which${ONLY:+-part}"
case "$which" in
  address) sanitizers="address,undefined" preload="libasan.so libubsan.so libstdc++.so" ;;
  thread) sanitizers="thread" preload="libtsan.so libstdc++.so" ;;
  *) echo "usage: run.sh address|thread" >&2; exit 2 ;;
esac

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGALLEY_SANITIZE="$sanitizers" \
  -DGALLEY_SANITIZE_ONLY="$ONLY" -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$build" | tail -1

# A runtime must be there before Python is; libstdc++ too, for exceptions to be seen.
for library in $preload; do
  LIBRARIES="$LIBRARIES $(g++ -print-file-name="$library")"
done
# Python's own allocations are not looked for leaks: it keeps most of them.
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1" UBSAN_OPTIONS="print_stacktrace=1"
# PyTorch's and numpy's threads are not instrumented, so nothing can be said of them.
export TSAN_OPTIONS="halt_on_error=1:ignore_noninstrumented_modules=1:exitcode=66"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export PYTHONPATH="tests/kernels/sanitized" GALLEY_NATIVE
GALLEY_NATIVE="$(pwd)/$(ls "$build"/_native*.so)"

# Not the pool's stress program, which is built with a sanitizer of its own, nor a forked child: the
# runtimes cannot always end a process that was forked from one with threads.
threads="tests/kernels/test_program.py::TestThreads"
run() {
  LD_PRELOAD="$LIBRARIES" "$python" -m pytest -p no:cacheprovider -x \
    --deselect $threads::test_pool_is_free_of_races \
    --deselect $threads::test_a_forked_child_computes_alone_and_ends "$@"
}

case "$*" in *tests/*)
  run "$@"
  echo "clean: $which, of these tests"
  exit ;;
esac
run tests/kernels "$@"
if [ "$which" = address ]; then
  for isa in avx2 generic; do
    GALLEY_CPU_ISA="$isa" run tests/kernels/test_cpu.py "$@"
  done
else
  g++ -std=c++17 -O1 -g -fsanitize=thread -Icsrc csrc/pool.cpp tests/kernels/pool_stress.cpp \
    -o "$build/pool_stress" -lpthread
  "$build/pool_stress"
fi
echo "clean: $which"
