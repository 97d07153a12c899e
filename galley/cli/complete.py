"""`galley complete`: continue a text, streaming."""

from __future__ import annotations

import sys

from galley.cli.chat import note, show
from galley.cli.parser import CommandParser, engine_flags, make
from galley.cli.prompt import messages
from galley.cli.talk import CompleteFlags, connect, sampling_options
from galley.config.resolve import SECTIONS
from galley.errors import GalleyError

MAX_TOKENS = 128


def parser() -> CommandParser:
    return CommandParser(
        "complete",
        "Complete a text, without a chat template: at a URL, or in this process when MODEL is "
        "given or no server answers.",
        [CompleteFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name to run in this process"),),
        examples=(
            "galley complete -q 'The capital of France is'",
            "galley complete model.gguf --max-tokens 32 < beginning.txt",
        ),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    flags = make(CompleteFlags, given)
    backend = connect(flags, engine_flags(given))
    options = {"max_tokens": MAX_TOKENS, **sampling_options(flags)}
    if flags.quick is not None:
        print(flags.quick, end="", flush=True)
        show(backend.complete(flags.quick, options), backend, flags.stats)
        return 0
    if not sys.stdin.isatty():
        for text in messages():
            show(backend.complete(text, options), backend, flags.stats)
        return 0
    note(f"Completing with {backend.name}. Ctrl-D exits.")
    for text in messages(history=flags.history):
        try:
            show(backend.complete(text, options), backend, flags.stats)
        except GalleyError as e:
            print(f"galley: {e.message}", file=sys.stderr)
    return 0
