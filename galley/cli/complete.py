"""`galley complete`: continue a text, streaming."""

from __future__ import annotations

import sys

from galley.cli.chat import read_flags, show, turns
from galley.cli.talk import connect, sampling_options
from galley.errors import GalleyError


def main(argv: list[str]) -> int:
    flags, engine = read_flags("complete", argv)
    talker = connect(flags, engine)
    options = {"max_tokens": 128, **sampling_options(flags)}
    if flags.quick is not None:
        print(flags.quick, end="", flush=True)
        show(talker.complete(flags.quick, options), talker, flags.stats)
        return 0
    print(f"Completing with {talker.name}. Ctrl-D exits.", file=sys.stderr)
    for text in turns():
        try:
            show(talker.complete(text, options), talker, flags.stats)
        except GalleyError as e:
            print(f"galley: {e.message}", file=sys.stderr)
    return 0
