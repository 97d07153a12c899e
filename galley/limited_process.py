"""Child processes that do jobs for untrusted input under limits of CPU time and memory.

    LimitedProcess.call ── length, job ──▶ serve(): handle(job)
                        ◀─ length, reply ──

The child is a module that is run as a program and calls `serve`. It starts with the first job and
serves until its parent closes the pipe or dies. A job that exceeds a limit ends the child, and
another one starts. The child gets only the environment variables for time and locale, so it
knows no keys.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

#: Seconds that a job may take on a machine that is busy.
WALL_SECONDS = 60.0
_INHERITED = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LC_CTYPE")
_SIZE_BYTES = 8
#: First byte of a reply.
_DONE, _OUT_OF_MEMORY = b"+", b"-"


class LimitExceeded(Exception):
    """A job needs more CPU time or memory than it may have; the message names the limit."""


class LimitedProcess:
    """The parent's side. `call` blocks and is thread-safe; one job runs at a time.

    Args:
        module: the program, a module of this package.
        cpu_seconds, memory: limits of a job; bytes beyond what the child has when it is idle.
        max_reply: bytes; a longer reply ends the child.
        arguments: further ones for the program, after the limits.
    """

    def __init__(
        self,
        module: str,
        cpu_seconds: float,
        memory: int,
        max_reply: int,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._module = module
        self._cpu_seconds = cpu_seconds
        self._memory = memory
        self._max_reply = max_reply
        self._arguments = arguments
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the child. A later job starts another one."""
        with self._lock:
            self._stop()

    def call(self, job: bytes) -> bytes:
        """The value that the child's `handle` returns for a job.

        Raises:
            LimitExceeded: a limit was exceeded, or the child died.
        """
        with self._lock:
            return self._exchange(job)

    def _exchange(self, job: bytes) -> bytes:
        process = self._running()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, job)
            reply = self._read_before(process.stdout, time.monotonic() + WALL_SECONDS)
        except (OSError, EOFError, TimeoutError):
            process.kill()
            status = process.wait()
            self._restart()
            raise LimitExceeded(describe(status, self._cpu_seconds, self._memory)) from None
        except BaseException:
            # Interrupted between job and reply: the next job must not read this reply.
            process.kill()
            self._stop()
            raise
        if reply[:1] == _OUT_OF_MEMORY:
            self._restart()
            raise LimitExceeded(memory_limit(self._memory))
        return reply[1:]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
            limits = [str(self._cpu_seconds), str(self._memory)]
            env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", self._module, *limits, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**env, "PYTHONPATH": os.pathsep.join(paths)},
            )
            self._finalizer = weakref.finalize(self, _end, self._process)
        return self._process

    def _restart(self) -> None:
        """Start another child now, so that the next job need not wait for it."""
        self._stop()
        self._running()

    def _stop(self) -> None:
        if self._process is not None:
            self._process = None
            self._finalizer()

    def _read_before(self, pipe: BinaryIO | Any, deadline: float) -> bytes:
        """One reply. Raises TimeoutError, EOFError."""
        head = _read_bytes(pipe.fileno(), _SIZE_BYTES, deadline)
        size = int.from_bytes(head, "little")
        if size > self._max_reply:
            raise EOFError
        return _read_bytes(pipe.fileno(), size, deadline)


def describe(status: int, cpu_seconds: float, memory: int) -> str:
    """The limit that a process exceeded that has ended with this status."""
    if status in (-signal.SIGPROF, -signal.SIGKILL):
        return f"it takes more than {cpu_seconds:g} seconds of CPU time"
    if status in (-signal.SIGABRT, -signal.SIGSEGV):
        # Native code ends the process when an allocation fails.
        return memory_limit(memory)
    return f"it ended its process (status {status})"


def memory_limit(memory: int) -> str:
    return f"it needs more than {memory >> 20} MiB of memory"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            pass
    process.wait()


def _write(pipe: BinaryIO | Any, body: bytes) -> None:
    pipe.write(len(body).to_bytes(_SIZE_BYTES, "little") + body)
    pipe.flush()


def _read_bytes(fd: int, size: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts = bytearray()
    while len(parts) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        part = os.read(fd, min(size - len(parts), 1 << 16))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


# ---------------------------------------------------------------------------- the child


def serve(handle: Callable[[bytes], bytes], cpu_seconds: float, memory: int) -> None:
    """Serve jobs from stdin until it is closed, in the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin.
    limit_memory(memory)
    jobs, replies = sys.stdin.buffer, sys.stdout.buffer
    while head := jobs.read(_SIZE_BYTES):
        job = jobs.read(int.from_bytes(head, "little"))
        limit_time(cpu_seconds)
        try:
            reply = _DONE + handle(job)
        except MemoryError:
            reply = _OUT_OF_MEMORY
        finally:
            limit_time(0)
        _write(replies, reply)


def limit_time(cpu_seconds: float) -> None:
    """End the process after so much CPU time from now on, also inside a call to C. 0: no limit."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def limit_memory(memory: int) -> None:
    """Allow `memory` bytes more than the process has mapped now (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    usage = Path("/proc/self/statm")
    if usage.exists():
        limit = resource.getpagesize() * int(usage.read_text().split()[0]) + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
