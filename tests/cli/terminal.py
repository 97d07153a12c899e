"""Runs a command at a pseudo-terminal and types input."""

from __future__ import annotations

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

    def __init__(self, *argv: str) -> None:
        self._ours, theirs = pty.openpty()

        def control() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "galley", *argv],
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb"},
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

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
