"""Writes an answer as it streams: at a terminal wrapped at words and with Markdown as styles."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from typing import Protocol

BOLD, CODE, DIM, RESET = "\033[1m", "\033[36m", "\033[2m", "\033[0m"
FENCE = "```"


class Writer(Protocol):
    """Takes pieces of text; `end` shows what is held back and ends the line."""

    def write(self, text: str) -> None: ...

    def end(self) -> None: ...


def writer(markdown: bool = True) -> Writer:
    """The writer for stdout: plain where it is no terminal, or one without styles."""
    if not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        return PlainWriter()
    styled = markdown and not os.environ.get("NO_COLOR")
    return TerminalWriter(shutil.get_terminal_size().columns, styled)


def dim(text: str) -> str:
    """`text` in the style of remarks, where stderr shows styles."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR")
    return text if plain or os.environ.get("TERM") == "dumb" else f"{DIM}{text}{RESET}"


class PlainWriter:
    """The text as it is; one end of line after it."""

    def write(self, text: str) -> None:
        print(text, end="", flush=True)

    def end(self) -> None:
        print(flush=True)


class TerminalWriter:
    """Wraps at words; shows bold text, code, code blocks and headings of Markdown.

    A word is held back until it ends, so that it can be put on the next line as a whole. Lines of
    a code block are not wrapped.
    """

    def __init__(self, width: int, styled: bool) -> None:
        self._width = width
        self._styled = styled
        self._word = ""
        self._column = 0
        self._start_of_line = True
        self._in_block = False
        self._bold = self._code = self._heading = False

    def write(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self._flush()
                self._end_line()
            elif char.isspace() and not self._in_block:
                self._flush()
                self._put(char)
            else:
                self._word += char
                if self._in_block and not FENCE.startswith(self._word[: len(FENCE)]):
                    self._flush()
        sys.stdout.flush()

    def end(self) -> None:
        self._flush()
        if self._bold or self._code or self._heading or self._in_block:
            self._out(RESET)
        self._bold = self._code = self._heading = self._in_block = False
        print(flush=True)

    def _out(self, text: str) -> None:
        sys.stdout.write(text)

    def _put(self, text: str) -> None:
        self._out(text)
        self._column += columns(text)
        self._start_of_line = False

    def _end_line(self) -> None:
        if self._heading:
            self._heading = False
            self._style()
        self._out("\n")
        self._column = 0
        self._start_of_line = True

    def _flush(self) -> None:
        """Write the held word."""
        word, self._word = self._word, ""
        if not word:
            return
        if self._start_of_line and word.startswith(FENCE):
            self._in_block = not self._in_block
            self._put(f"{DIM}{word}{RESET}" if self._styled else word)
            if self._in_block and self._styled:
                self._out(CODE)
        elif self._in_block:
            self._put(word)
        else:
            self._put_word(word)

    def _put_word(self, word: str) -> None:
        if self._styled and self._start_of_line and word.strip("#") == "" and len(word) <= 6:
            self._heading = True
            self._style()
        size = columns(word.replace("**", "").replace("`", "") if self._styled else word)
        if self._column and self._column + size > self._width:
            self._out("\n")
            self._column = 0
        self._start_of_line = False
        if not self._styled:
            self._put(word)
            return
        self._column += size
        at = 0
        while at < len(word):
            if word[at] == "`":
                self._code = not self._code
                self._style()
                at += 1
            elif not self._code and word.startswith("**", at):
                self._bold = not self._bold
                self._style()
                at += 2
            else:
                self._out(word[at])
                at += 1

    def _style(self) -> None:
        """Switch to the styles that hold from here on."""
        bold = BOLD if self._bold or self._heading else ""
        self._out(RESET + bold + (CODE if self._code else ""))


def columns(text: str) -> int:
    """The width of `text` at a terminal: wide characters take two columns, marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
