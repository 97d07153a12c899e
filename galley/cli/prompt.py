"""Messages typed at a terminal: several lines, history, Ctrl-C; or one message from a pipe."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

#: Opens and closes a message of several lines.
QUOTES = '"""'
HISTORY_LENGTH = 1000
HINT = "(Ctrl-D or /quit exits)"


def messages(prompt: str = "> ", history: bool = True) -> Iterator[str]:
    """Yield what the user types, message by message, until end of input.

    Pasted text is one message, as are lines between three quotes and lines that end with a
    backslash. Ctrl-C discards the line. Input that is no terminal is one message as a whole.
    """
    if not sys.stdin.isatty():
        if text := sys.stdin.read().strip():
            yield text
        return
    with contextlib.suppress(ImportError):
        _edit_lines(history)
    while True:
        try:
            text = _read_message(prompt)
        except KeyboardInterrupt:
            print(f"\n{HINT}")
        except EOFError:
            print()
            return
        else:
            if text:
                yield text


def _read_message(prompt: str) -> str:
    lines = [input(prompt)]
    if lines[0].lstrip().startswith(QUOTES):
        lines[0] = lines[0].lstrip()[len(QUOTES) :]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input(". "))
        lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines).strip()


def _edit_lines(history: bool) -> None:
    """Line editing, pasting, and the history of earlier chats. Raises ImportError."""
    import readline

    if os.environ.get("TERM") not in (None, "", "dumb"):
        readline.parse_and_bind("set enable-bracketed-paste on")
    if not history:
        return
    path = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LENGTH)
    atexit.register(_write_history, path)


def history_file() -> Path:
    """$XDG_STATE_HOME/galley/chat_history, by default below ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "galley" / "chat_history"


def _write_history(path: Path) -> None:
    """Keep the history, readable by its owner only."""
    import readline

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        readline.write_history_file(path)


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Keys typed meanwhile are not shown between the words of an answer; the next prompt has
    them."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
