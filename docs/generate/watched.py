"""`galley`, with a note of every environment variable it reads and every address it connects to.

    WATCH_FILE=FILE python docs/generate/watched.py serve ...

A line of the file is a kind and a name: `env NAME`, `connect ADDRESS`, `bind ADDRESS`,
`resolve HOST`. The launcher's children are forks, so they are watched too. What C code does by
itself is not seen here; /proc is asked for that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_seen: set[str] = set()


def note(kind: str, name: object) -> None:
    line = f"{kind} {name}\n"
    if line not in _seen:
        _seen.add(line)
        fd = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, line.encode())
        os.close(fd)


def audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.bind"):
        note(event.removeprefix("socket."), args[1])
    elif event == "socket.getaddrinfo":
        note("resolve", args[0])


class WatchedEnviron(os._Environ):  # type: ignore[type-arg]
    """os.environ, which tells what it is asked for."""

    def __getitem__(self, key: str) -> str:
        note("env", key)
        return super().__getitem__(key)


if __name__ == "__main__":
    _file = os.environ.pop("WATCH_FILE")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    os.environ.__class__ = WatchedEnviron
    sys.addaudithook(audit)
    from galley.cli.main import main

    sys.exit(main())
