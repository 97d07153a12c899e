"""A file descriptor by which another thread ends the engine's sleep."""

from __future__ import annotations

import contextlib
import os


class WakeUp:
    """Readable from `set` to `clear`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        """May be called in any thread."""
        with contextlib.suppress(BlockingIOError):  # full, so that it is readable
            os.write(self._write, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def __del__(self) -> None:
        os.close(self._read)
        os.close(self._write)
