"""Ctrl-C waits for the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from galley.frontend.interrupt import uninterrupted


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def in_a_block(*acts: Callable[[], object]) -> None:
    with uninterrupted():
        for act in acts:
            act()


def test_an_interrupt_is_delayed_to_the_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        in_a_block(press, lambda: done.append("the rest of the block"))
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    in_a_block()


def test_a_second_one_is_immediate() -> None:
    with pytest.raises(KeyboardInterrupt):
        in_a_block(press, press, lambda: pytest.fail("it was held back"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        in_a_block(press, lambda: 1 / 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_and_threads_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with uninterrupted():
            press()
            assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere() -> None:
        with uninterrupted():
            heard.append(0)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [signal.SIGINT, 0]
