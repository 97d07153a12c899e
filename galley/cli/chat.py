"""`galley chat`: a conversation at the terminal, streaming, over several turns."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from galley.cli.parser import CommandParser, engine_flags, make
from galley.cli.talk import ChatFlags, Message, Talker, connect, sampling_options
from galley.config.resolve import SECTIONS
from galley.errors import GalleyError

COMMANDS = "/reset clears the conversation, /quit or Ctrl-D exits"


def parser(command: str = "chat") -> CommandParser:
    return CommandParser(
        command,
        "Chat with a model: at a URL, or in this process when MODEL is given or no server answers.",
        [ChatFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name to run in this process"),),
        examples=(
            "galley chat",
            "galley chat model.gguf --system-prompt 'Answer in one sentence.'",
            "galley chat --url http://gpu-box:8000/v1 --quick 'Hello'",
        ),
    )


def read_flags(command: str, argv: list[str]) -> tuple[ChatFlags, dict[str, object]]:
    """Split a command line into the chat flags and the engine flags."""
    given = parser(command).read(argv)
    return make(ChatFlags, given), engine_flags(given)


def main(argv: list[str]) -> int:
    flags, engine = read_flags("chat", argv)
    talker = connect(flags, engine)
    opening: list[Message] = []
    if flags.system_prompt:
        opening = [{"role": "system", "content": flags.system_prompt}]
    options = sampling_options(flags)
    if flags.quick is not None:
        messages = [*opening, {"role": "user", "content": flags.quick}]
        show(talker.chat(messages, options), talker, flags.stats)
        return 0
    print(f"Chatting with {talker.name}. {COMMANDS}.", file=sys.stderr)
    history = list(opening)
    for text in turns():
        if text == "/reset":
            history = list(opening)
            continue
        history.append({"role": "user", "content": text})
        try:
            answer = show(talker.chat(history, options), talker, flags.stats)
        except GalleyError as e:
            print(f"galley: {e.message}", file=sys.stderr)
            history.pop()
            continue
        history.append({"role": "assistant", "content": answer})
    return 0


def turns() -> Iterator[str]:
    """Yield the lines that the user types, until end of input."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and history
    while True:
        try:
            text = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            print(end="\n" if prompt else "")
            return
        if text in ("/quit", "/exit"):
            return
        if text:
            yield text


def show(pieces: Iterator[str], talker: Talker, stats: bool) -> str:
    """Print an answer as it streams and return it. Ctrl-C ends the answer, not the chat."""
    start = time.perf_counter()
    first = 0.0
    answer: list[str] = []
    try:
        for piece in pieces:
            first = first or time.perf_counter() - start
            answer.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    if stats:
        seconds = time.perf_counter() - start
        usage = talker.usage
        print(
            f"[{usage.prompt_tokens} tokens in, {usage.completion_tokens} out, first after "
            f"{first:.2f} s, {usage.completion_tokens / max(seconds, 1e-9):.1f} tokens/s]",
            file=sys.stderr,
        )
    return "".join(answer)
