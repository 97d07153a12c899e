"""One child process of the launcher: forking, naming, and its ties to the parent.

The launcher imports little, so a fork of it is small and starts at once; the child then imports
what it needs, in parallel with its siblings.
"""

from __future__ import annotations

import ctypes
import gc
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
#: Of 1000: added to an engine's OOM score, so that the kernel kills it rather than its siblings.
_OOM_SCORE = 200


@dataclass(slots=True)
class Child:
    """One process, as the launcher knows it.

    Attributes:
        slot: number of the engine or API server; its successor has the same.
        number: an engine's incarnation (epoch), or a frontend's client index.
        address: where an engine listens; None until it does.
        serving: its start-up has finished.
        failing: why the launcher has killed it, else None.
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
            they end with the launcher alone.
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
        # Not sys.exit: the launcher's exit handlers must not run here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_child(title: str, parent: int, parent_death: signal.Signals) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Ctrl-C at the terminal is handled by the launcher, which ends its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, parent_death)
    if os.getppid() != parent:
        os._exit(1)
    set_title(title)


def _run(entry: Callable[[Channel], None], channel: Channel) -> int:
    """Run a child to its end; a failure is reported by the launcher. Returns the exit code."""
    gc.disable()  # its start makes nothing that is collected, and ends with gc.enable
    try:
        entry(channel)
    except SetupError as e:
        channel.send(Failed(e.message, 2))
        return 2
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    except Exception as e:  # noqa: BLE001 - the process ends: everything is reported
        traceback.print_exc()
        channel.send(Failed(f"{type(e).__name__}: {e}", 1))
        return 1
    return 0


def prefer_for_oom_kill() -> None:
    """Have the OOM killer choose this process rather than its siblings: it can be replaced without
    losing requests.
    """
    path = Path("/proc/self/oom_score_adj")
    try:
        path.write_text(str(min(int(path.read_text()) + _OOM_SCORE, 1000)))
    except OSError:
        pass  # no such system, or not allowed


def set_title(title: str) -> None:
    """Name this process for ps and top."""
    import setproctitle

    setproctitle.setproctitle(title)
