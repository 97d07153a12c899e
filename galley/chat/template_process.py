"""Chat templates that are not trusted, in processes under limits of CPU time and memory.

`TemplateProcess` serves the templates of requests, in a child that inspects and renders them;
`Trial` tries a checkpoint's once, at start-up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from galley.chat.content_format import ContentFormat
from galley.chat.sandbox import MAX_TEXT, ChatEnvironment, Template, TemplateLimit, failure
from galley.limited_process import (
    LimitedProcess,
    LimitExceeded,
    describe,
    limit_memory,
    limit_time,
    memory_limit,
    serve,
)

#: CPU seconds of one job.
CPU_SECONDS = 2.0
#: Bytes that a job may allocate.
MEMORY = 256 << 20
#: Longest reply in bytes: every character of a prompt takes at most 12 in JSON.
_MAX_REPLY = 12 * MAX_TEXT + 4096
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
        limit_memory(MEMORY)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        limit_time(CPU_SECONDS)
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
            raise TemplateLimit(_describe(status))


def _describe(status: int) -> str:
    """The limit that a trial exceeded that has ended with this status."""
    if status == _OUT_OF_MEMORY:
        return memory_limit(MEMORY)
    if status == _TOO_LONG:
        return f"it writes more than {MAX_TEXT} characters"
    return describe(status, CPU_SECONDS, MEMORY)


class TemplateFailure(Exception):
    """The template is not valid (`inspect`) or has raised an error (`render`)."""


class TemplateProcess:
    """The parent's side. Methods block and are thread-safe; one job runs at a time.

    Args:
        cpu_seconds, memory: limits of a job; bytes beyond what the child has when it is idle.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory: int = MEMORY) -> None:
        self.process = LimitedProcess(__name__, cpu_seconds, memory, _MAX_REPLY)

    def close(self) -> None:
        """End the child. A later job starts another one."""
        self.process.close()

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
        try:
            reply = json.loads(self.process.call(body))
        except LimitExceeded as error:
            raise TemplateLimit(str(error)) from None
        if "limit" in reply:
            raise TemplateLimit(reply["limit"])
        if "error" in reply:
            raise TemplateFailure(reply["error"])
        assert isinstance(reply, dict)
        return reply


# ---------------------------------------------------------------------------- the child


def _handle(compiled: Callable[[str], Template], job: bytes) -> bytes:
    return json.dumps(_run(compiled, json.loads(job))).encode()


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
    _environment = ChatEnvironment()
    _compiled = lru_cache(maxsize=16)(lambda source: Template(_environment, source))
    serve(partial(_handle, _compiled), float(sys.argv[1]), int(sys.argv[2]))
