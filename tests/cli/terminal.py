"""Runs a command at a pseudo-terminal and types input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Terminal:
    """`galley …` on a pseudo-terminal."""

    def __init__(self, *argv: str, term: str = "dumb", env: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()

        def control() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "galley", *argv],
            cwd=ROOT,
            env={**os.environ, "TERM": term, **(env or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=control,
        )
        os.close(theirs)
        self._pending = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read(self, until: str, seconds: float = 120.0) -> str:
        """Read output up to and including `until`."""
        end = time.monotonic() + seconds
        while until not in self._pending:
            assert time.monotonic() < end, f"no {until!r} in {self._pending!r}"
            if select.select([self._ours], [], [], 0.5)[0]:
                data = os.read(self._ours, 65536)
                assert data, f"it ended: {self._pending!r}"
                self._pending = (self._pending + data.decode()).replace("\r\n", "\n")
        shown, found, self._pending = self._pending.partition(until)
        return shown + found

    def press(self, key: str, until: str) -> str:
        """Press a key, again each second, until `until` is shown: one that is pressed while the
        program prepares the terminal may be lost. Returns the output up to it."""
        end = time.monotonic() + 60
        while until not in self._pending and time.monotonic() < end:
            self.type(key)
            with contextlib.suppress(AssertionError):
                return self.read(until, 1.0)
        return self.read(until)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
