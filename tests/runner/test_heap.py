"""Memory of the C library's allocator."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Four threads allocate at the same time; then the allocator's own report.
_CODE = """
import ctypes, threading
from galley.runner.heap import share_one_heap
{share}
together = threading.Barrier(4)
def allocate():
    ctypes.CDLL(None).malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("share", [True, False])
def test_threads_share_one_heap(share: bool) -> None:
    code = _CODE.format(share="share_one_heap()" if share else "")
    report = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (report.stdout.count("<heap nr=") == 1) == share
