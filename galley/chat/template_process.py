"""Child processes that run untrusted chat templates under limits of CPU time and memory.

    TemplateProcess ── length, JSON job ──▶ main(): inspect | render
                    ◀─ length, JSON reply ──

`TemplateProcess` serves the templates of requests; `Trial` tries a checkpoint's once, at start-up.
The child of a `TemplateProcess` starts with the first job and serves until its parent closes the
pipe or dies. A job that exceeds a limit ends the child; the next job starts another one. The child
gets only the environment variables for time and locale, so it knows no keys.
"""

from __future__ import annotations

import json
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
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from galley.chat.content_format import ContentFormat
from galley.chat.sandbox import MAX_TEXT, ChatEnvironment, Template, TemplateLimit, failure

#: CPU seconds of one job.
CPU_SECONDS = 2.0
#: Seconds that a job may take on a machine that is busy.
WALL_SECONDS = 60.0
#: Bytes that a job may allocate.
MEMORY = 256 << 20
#: Longest reply in bytes: every character of a prompt takes at most 12 in JSON.
_MAX_REPLY = 12 * MAX_TEXT + 4096
_INHERITED = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LC_CTYPE")
_SIZE_BYTES = 8
#: Exit statuses of a trial.
_OUT_OF_MEMORY, _TOO_LONG = 3, 4


class Trial:
    """Work that runs in a fork of this process, under the limits of a job.

    A fork costs a few milliseconds, where a program of its own would cost as much as all other
    start-up work of a server. The process should have no other thread that holds locks.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                status = self._work(work)
            finally:
                os._exit(status)

    @staticmethod
    def _work(work: Callable[[], object]) -> int:
        _limit_memory(MEMORY)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            work()
        except MemoryError:
            return _OUT_OF_MEMORY
        except TemplateLimit:
            return _TOO_LONG
        except Exception:  # noqa: BLE001 - it ended, which is what the trial is about
            pass
        return 0

    def wait(self) -> None:
        """Return when the work has ended. Raises TemplateLimit naming the limit it exceeded."""
        _, raw = os.waitpid(self._pid, 0)
        status = os.waitstatus_to_exitcode(raw)
        if status != 0:
            raise TemplateLimit(_describe(status, CPU_SECONDS, MEMORY))


def _describe(status: int, cpu_seconds: float, memory: int) -> str:
    """The limit that a process exceeded that has ended with this status."""
    if status in (-signal.SIGPROF, -signal.SIGKILL):
        return f"it takes more than {cpu_seconds:g} seconds of CPU time"
    if status == _OUT_OF_MEMORY:
        return f"it needs more than {memory >> 20} MiB of memory"
    if status == _TOO_LONG:
        return f"it writes more than {MAX_TEXT} characters"
    return f"it ended its process (status {status})"


class TemplateFailure(Exception):
    """The template is not valid (`inspect`) or has raised an error (`render`)."""


class TemplateProcess:
    """The parent's side. Methods block and are thread-safe; one job runs at a time.

    Args:
        cpu_seconds, memory: limits of a job; bytes beyond what the child has when it is idle.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory: int = MEMORY) -> None:
        self._cpu_seconds = cpu_seconds
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child. A later job starts another one."""
        with self._lock:
            self._stop()

    def inspect(self, source: str) -> tuple[ContentFormat, bool]:
        """(content format, whether the template knows developers) of a template.

        Raises:
            TemplateFailure: not valid jinja.
            TemplateLimit: it takes too long to parse.
        """
        reply = self._call({"source": source, "variables": None})
        return reply["content_format"], reply["knows_developer"]

    def render(self, source: str, variables: dict[str, Any]) -> str:
        """The text of a template.

        Raises:
            TemplateFailure: the template raised an error.
            TemplateLimit: a limit was exceeded; the message names it.
        """
        return str(self._call({"source": source, "variables": variables})["text"])

    def _call(self, job: dict[str, Any]) -> dict[str, Any]:
        try:
            body = json.dumps(job).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFailure(f"its variables are not plain data: {error}") from None
        with self._lock:
            reply = self._exchange(body)
        if "limit" in reply:
            raise TemplateLimit(reply["limit"])
        if "error" in reply:
            raise TemplateFailure(reply["error"])
        return reply

    def _exchange(self, body: bytes) -> dict[str, Any]:
        process = self._running()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, body)
            reply = json.loads(_read_before(process.stdout, time.monotonic() + WALL_SECONDS))
        except (OSError, EOFError, TimeoutError):
            process.kill()
            status = process.wait()
            self._stop()
            return {"limit": _describe(status, self._cpu_seconds, self._memory)}
        except BaseException:
            # Interrupted between job and reply: the next job must not read this reply.
            process.kill()
            self._stop()
            raise
        if reply.get("limit"):
            self._stop()
        assert isinstance(reply, dict)
        return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
            limits = [str(self._cpu_seconds), str(self._memory)]
            env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", __name__, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**env, "PYTHONPATH": os.pathsep.join(paths)},
            )
            self._finalizer = weakref.finalize(self, _end, self._process)
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process = None
            self._finalizer()


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


def _read_before(pipe: BinaryIO | Any, deadline: float) -> bytes:
    """One reply. Raises TimeoutError, EOFError."""
    head = _read_bytes(pipe.fileno(), _SIZE_BYTES, deadline)
    size = int.from_bytes(head, "little")
    if size > _MAX_REPLY:
        raise EOFError
    return _read_bytes(pipe.fileno(), size, deadline)


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


def main(cpu_seconds: float, memory: int) -> None:
    """Serve jobs from stdin until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin.
    _limit_memory(memory)
    environment = ChatEnvironment()
    compiled = lru_cache(maxsize=16)(lambda source: Template(environment, source))
    jobs, replies = sys.stdin.buffer, sys.stdout.buffer
    while head := jobs.read(_SIZE_BYTES):
        body = jobs.read(int.from_bytes(head, "little"))
        # SIGPROF ends the process, also inside a call to C.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            reply = _run(compiled, json.loads(body))
            encoded = json.dumps(reply).encode()
        except MemoryError:
            reply = {"limit": _describe(_OUT_OF_MEMORY, cpu_seconds, memory)}
            encoded = json.dumps(reply).encode()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        _write(replies, encoded)


def _limit_memory(memory: int) -> None:
    """Allow `memory` bytes more than the process has mapped now (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    usage = Path("/proc/self/statm")
    if usage.exists():
        limit = resource.getpagesize() * int(usage.read_text().split()[0]) + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _run(compiled: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        template: Template = compiled(job["source"])
        if job["variables"] is None:
            return {
                "content_format": template.content_format,
                "knows_developer": template.knows_developer,
            }
        return {"text": template.render(job["variables"])}
    except MemoryError:
        raise
    except TemplateLimit as error:
        return {"limit": str(error)}
    except ValueError as error:
        return {"error": failure(error) if job["variables"] is not None else str(error)}
    except Exception as error:  # noqa: BLE001 - a template is a program and can raise anything
        return {"error": failure(error)}


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
