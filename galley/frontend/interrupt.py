"""Ctrl-C takes effect between two steps of an engine in this process, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay a KeyboardInterrupt until the block has ended; a second one is immediate.

    Within the block the engine's state is inconsistent: an interrupt would break it for further use
    (in a notebook, or `galley chat`). Handlers other than Python's own are left alone, and so are
    threads, which are never interrupted.
    """
    default = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    pressed = False

    def wait(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, default)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
    if pressed:
        raise KeyboardInterrupt
