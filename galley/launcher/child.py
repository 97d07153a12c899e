"""One child process of the launcher: how it is forked, named, tied to its parent and ended.

The launcher imports little, so a fork of it is small and starts at once; the child then imports
what it needs, while its siblings do the same beside it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from galley.engine.control import Channel, Failed
from galley.errors import SetupError

_PR_SET_PDEATHSIG = 1
#: Of 1000: how much sooner the kernel should choose an engine for want of memory.
_OFFER = 200


@dataclass(slots=True)
class Child:
    """What the launcher knows of one process.

    Attributes:
        slot: which engine or API server it is; its successor takes the same.
        number: an engine's incarnation (epoch), or a frontend's client index.
        address: where an engine listens, once it does.
        serving: its start-up is over.
        failing: why the launcher has killed it, if it has.
    """

    kind: Literal["engine", "server"]
    slot: int
    number: int
    pid: int
    channel: Channel
    address: str | None = None
    serving: bool = False
    failing: str | None = None
    started: float = field(default_factory=time.monotonic)

    def signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass


def fork(
    title: str,
    entry: Callable[[Channel], None],
    inherited: Iterable[Channel],
    parent_death: signal.Signals,
) -> tuple[int, Channel]:
    """Start `entry(channel)` in a child; returns its pid and the launcher's end of the channel.

    Args:
        inherited: the launcher's ends of other children's channels: closed in the child, so that
            they end with the launcher and with nobody else.
        parent_death: the signal that the child gets when the launcher dies.
    """
    ours, theirs = Channel.pair()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        for channel in inherited:
            channel.close()
        _become_child(title, parent, parent_death)
        code = _run(entry, theirs)
    finally:
        # Not sys.exit: what the launcher has registered to run at its end is not ours to run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_child(title: str, parent: int, parent_death: signal.Signals) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Ctrl-C at the terminal reaches the launcher alone, which ends its children in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, parent_death)
    if os.getppid() != parent:
        os._exit(1)
    set_title(title)


def _run(entry: Callable[[Channel], None], channel: Channel) -> int:
    """Run a child's whole life; a failure is reported once, by the launcher. Returns exit code."""
    try:
        entry(channel)
    except SetupError as e:
        channel.send(Failed(e.message, 2))
        return 2
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    except Exception as e:  # noqa: BLE001 - the end of the process: whatever it was is reported
        traceback.print_exc()
        channel.send(Failed(f"{type(e).__name__}: {e}", 1))
        return 1
    return 0


def offer_to_memory_killer() -> None:
    """Have the kernel end this process rather than its siblings where memory has run out: what it
    does can be done again by another.
    """
    path = Path("/proc/self/oom_score_adj")
    try:
        path.write_text(str(min(int(path.read_text()) + _OFFER, 1000)))
    except OSError:
        pass  # no such system, or not allowed


def set_title(title: str) -> None:
    """Name this process for ps and top."""
    import setproctitle

    setproctitle.setproctitle(title)
