"""`galley launch`: a part of the server alone."""

from __future__ import annotations

from galley.cli.parser import CommandParser, engine_flags, make
from galley.cli.serve import serving_parser
from galley.config.resolve import from_kwargs
from galley.config.server import ServerConfig
from galley.errors import ConfigError

#: Part → one line.
PARTS = {"render": "requests to token ids and token ids to answers; no weights are loaded"}


def overview() -> str:
    return "\n".join(
        [
            "usage: galley launch PART [MODEL] [options]",
            "",
            "parts:",
            *(f"  {name:<12}{text}" for name, text in PARTS.items()),
            "",
            "galley launch render --help   # its options are those of `galley serve`",
        ]
    )


def parser() -> CommandParser:
    return serving_parser(
        "launch render",
        "Serve the routes that turn requests into token ids, and token ids into answers, without "
        "an engine: no weights are loaded.",
        (
            "galley launch render ./Qwen2.5-0.5B-Instruct --port 8100",
            "galley serve ./Qwen2.5-0.5B-Instruct --tokens-only --port 8200",
        ),
    )


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] not in PARTS:
        raise ConfigError(f"no part {argv[0]!r} to launch. One of: {', '.join(PARTS)}.")
    reader = parser()
    given = reader.read(argv[1:])
    from galley.launcher.main import launch

    config = from_kwargs(engine_flags(given), "server")
    return launch(config, make(ServerConfig, given), reader.sources, renders_only=True)
