"""Ctrl-C between two steps of an engine in this process, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a KeyboardInterrupt wait until the block has ended; a second one does not wait.

    Within the block the engine's books do not add up: who goes on using it after an interrupt
    (a notebook, `galley chat`) would find it broken. Other handlers than Python's own, and
    threads, which are never interrupted, are left alone.
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
