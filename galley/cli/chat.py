"""`galley chat`: a conversation at the terminal, streaming, over several turns."""

from __future__ import annotations

import difflib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from galley.cli.answer import Writer, dim, writer
from galley.cli.parser import CommandParser, engine_flags, make
from galley.cli.prompt import QUOTES, messages, unechoed
from galley.cli.talk import SAMPLING, ChatBackend, ChatFlags, Message, connect, sampling_options
from galley.config.resolve import SECTIONS
from galley.errors import GalleyError

#: Maximum tokens of an answer where the user names none: a small model may never end.
MAX_TOKENS = 1024
#: How servers say that a conversation is too long: vLLM, llama-server, OpenAI.
TOO_LONG = re.compile(r"context (length|size|window)|context_length", re.I)


def parser() -> CommandParser:
    return CommandParser(
        "chat",
        "Chat with a model: at a URL, or in this process when MODEL is given or no server answers.",
        [ChatFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name to run in this process"),),
        examples=(
            "galley chat",
            "galley chat model.gguf --system-prompt 'Answer in one sentence.'",
            "galley chat --url http://gpu-box:8000/v1 --quick 'Hello'",
            "git diff | galley chat --system-prompt 'Summarise this change.'",
        ),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    flags = make(ChatFlags, given)
    chat = Chat(connect(flags, engine_flags(given)), flags)
    if flags.quick is not None or not sys.stdin.isatty():
        for text in messages() if flags.quick is None else [flags.quick]:
            chat.messages.append({"role": "user", "content": text})
            show(chat.backend.chat(chat.messages, chat.options), chat.backend, flags.stats)
        return 0
    note(f"Chatting with {chat.backend.name}. /help lists commands; Ctrl-D or /quit exits.")
    for text in messages(history=flags.history):
        if not chat.turn(text):
            break
    return 0


def note(text: str) -> None:
    print(dim(text), file=sys.stderr)


class Chat:
    """A conversation: its messages, and what the commands change.

    Attributes:
        messages: what is sent: the system message if there is one, then the turns.
        options: sampling fields.
    """

    def __init__(self, backend: ChatBackend, flags: ChatFlags) -> None:
        self.backend = backend
        self.options = sampling_options(flags)
        self.options.setdefault("max_tokens", min(MAX_TOKENS, backend.limit or MAX_TOKENS))
        self.stats = flags.stats
        self._markdown = flags.markdown
        self._tokens_per_char = 0.0
        self.messages: list[Message] = []
        if flags.system_prompt:
            self.messages = [{"role": "system", "content": flags.system_prompt}]

    @property
    def opening(self) -> list[Message]:
        """The system message, if there is one."""
        return [m for m in self.messages[:1] if m["role"] == "system"]

    def turn(self, text: str) -> bool:
        """Act on a typed text: a command, or a message. Returns whether the chat goes on."""
        if text in ("exit", "quit"):
            return False
        # A path such as /etc/hosts begins a message.
        command = re.match(r"/([a-z?]+)(?:\s+(.*))?$", text, re.S)
        if command is None:
            self.messages.append({"role": "user", "content": text})
            self.answer()
            return True
        name, argument = command[1], (command[2] or "").strip()
        if name in ("quit", "exit", "bye"):
            return False
        act = COMMANDS.get(ALIASES.get(name, name))
        if act is None:
            near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], 1)
            hint = f"Did you mean /{near[0]}?" if near else "/help lists them."
            note(f"no command /{name}. {hint}")
            return True
        try:
            act[0](self, argument)
        except (GalleyError, OSError, ValueError) as e:
            note(f"/{name}: {e}")
        return True

    # ------------------------------------------------------------------ answers

    def answer(self, go_on: bool = False) -> None:
        """Stream an answer to the messages, or go on with the last one; drop the oldest turns
        where the context has no room."""
        dropped = self._make_room()
        while True:
            output = writer(self._markdown)
            try:
                text = show(
                    self.backend.chat(self.messages, self.options, go_on),
                    self.backend,
                    self.stats,
                    output,
                )
                break
            except GalleyError as e:
                if TOO_LONG.search(e.message) and self._drop_oldest():
                    dropped += 2
                    continue
                print(f"galley: {e.message}", file=sys.stderr)
                if not go_on:
                    self.messages.pop()
                return
        self._keep(text, go_on)
        if dropped:
            note(f"[the context is full: the {dropped} oldest messages were left out]")
        self._note_cut()

    def _keep(self, text: str, go_on: bool) -> None:
        """Add an answer to the messages. A question without an answer is taken back."""
        if go_on:
            self.messages[-1] = {
                "role": "assistant",
                "content": self.messages[-1]["content"] + text,
            }
        elif text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()
        if self.backend.usage.total:
            self._tokens_per_char = self.backend.usage.total / max(self._chars(), 1)

    def _chars(self) -> int:
        return sum(len(m["content"]) for m in self.messages)

    def _note_cut(self) -> None:
        if self.backend.finish_reason != "length":
            return
        limit, total = self.backend.limit, self.backend.usage.total
        where = f"{self.backend.usage.completion_tokens:,} tokens"
        if limit is not None and total >= limit:
            where = f"the context's end, {limit:,} tokens"
        note(f"[cut at {where}; /continue goes on]")

    def _make_room(self) -> int:
        """Drop turns that leave no room for an answer; returns how many messages."""
        dropped = 0
        if self.backend.limit is None:
            return 0
        room = min(self.options["max_tokens"], self.backend.limit // 4)
        while True:
            if self._chars() * self._tokens_per_char + room <= self.backend.limit:
                return dropped
            if not self._drop_oldest():
                return dropped
            dropped += 2

    def _drop_oldest(self) -> bool:
        """Drop the oldest question and its answer; False if there is none but the last."""
        first = len(self.opening)
        users = [i for i in range(first, len(self.messages)) if self.messages[i]["role"] == "user"]
        if len(users) < 2:
            return False
        del self.messages[first : users[1]]
        return True

    # ------------------------------------------------------------------ commands

    def help(self, _: str) -> None:
        """lists the commands"""
        for name, (act, usage) in COMMANDS.items():
            note(f"  {'/' + name + ' ' + usage:<26}{' '.join((act.__doc__ or '').split())}")
        note(f"  {'/quit, Ctrl-D':<26}exits")
        note(f"Ctrl-C stops an answer. {QUOTES} opens and closes a message of several lines.")

    def system(self, text: str) -> None:
        """shows or replaces the system message"""
        if text:
            self.messages[: len(self.opening)] = [{"role": "system", "content": text}]
        else:
            note(self.opening[0]["content"] if self.opening else "no system message")

    def set(self, text: str) -> None:
        """shows or sets temperature, top_p, top_k, seed or max_tokens"""
        name, _, value = text.replace("=", " ").partition(" ")
        if not name:
            note(", ".join(f"{k} {v}" for k, v in self.options.items()))
            return
        name = name.replace("-", "_")
        if name not in SAMPLING:
            raise ValueError(f"no {name!r}; one of {', '.join(SAMPLING)}")
        if not value.strip():
            raise ValueError(f"{name} needs a value")
        self.options[name] = SAMPLING[name](value)

    def show_stats(self, _: str) -> None:
        """switches counts and speed after each answer on or off"""
        self.stats = not self.stats
        note(f"statistics are {'on' if self.stats else 'off'}")

    def retry(self, _: str) -> None:
        """answers the last message again"""
        self._need_answer()
        self.messages.pop()
        self.answer()

    def go_on(self, _: str) -> None:
        """goes on with the last answer"""
        self._need_answer()
        self.answer(go_on=True)

    def undo(self, _: str) -> None:
        """takes the last message and its answer back"""
        self._need_answer()
        del self.messages[-2:]
        note(f"{len(self.messages) - len(self.opening)} messages are left")

    def save(self, path: str) -> None:
        """writes the conversation to a file, as JSON"""
        if not path:
            raise ValueError("a file is needed")
        Path(path).expanduser().write_text(
            json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        note(f"{len(self.messages)} messages are in {path}")

    def load(self, path: str) -> None:
        """replaces the conversation by one that /save wrote"""
        if not path:
            raise ValueError("a file is needed")
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(
            isinstance(m, dict) and {"role", "content"} <= set(m) for m in found
        ):
            raise ValueError(f"{path} holds no list of messages")
        self.messages = found
        note(f"{len(found)} messages were read")

    def reset(self, _: str) -> None:
        """clears the conversation, except for the system message"""
        self.messages = self.opening
        note("the conversation is cleared")

    def _need_answer(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError("there is no answer yet")


#: Commands that can be typed: name → method, its argument.
COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str]] = {
    "help": (Chat.help, ""),
    "system": (Chat.system, "[TEXT]"),
    "set": (Chat.set, "[NAME VALUE]"),
    "stats": (Chat.show_stats, ""),
    "retry": (Chat.retry, ""),
    "continue": (Chat.go_on, ""),
    "undo": (Chat.undo, ""),
    "reset": (Chat.reset, ""),
    "save": (Chat.save, "FILE"),
    "load": (Chat.load, "FILE"),
}
ALIASES = {"?": "help", "clear": "reset"}


def show(
    pieces: Iterator[str], backend: ChatBackend, stats: bool, output: Writer | None = None
) -> str:
    """Print an answer as it streams and return it. Ctrl-C ends the answer, not the chat.

    Raises:
        GalleyError: the answer could not be computed to its end; what there is has been printed.
    """
    output = output or writer(markdown=False)
    start = time.perf_counter()
    first = 0.0
    answer: list[str] = []
    with unechoed():
        try:
            for piece in pieces:
                first = first or time.perf_counter() - start
                answer.append(piece)
                output.write(piece)
        except KeyboardInterrupt:
            backend.finish_reason = None
            close: Any = getattr(pieces, "close", None)
            if close is not None:
                close()
        finally:
            # An error begins a line of its own.
            if answer or sys.exc_info()[0] is None:
                output.end()
    if stats:
        seconds = time.perf_counter() - start
        usage = backend.usage
        note(
            f"[{usage.prompt_tokens} tokens in, {usage.completion_tokens} out, first after "
            f"{first:.2f} s, {usage.completion_tokens / max(seconds, 1e-9):.1f} tokens/s]"
        )
    return "".join(answer)
