"""`galley models`: the architectures that Galley runs, with one checkpoint each."""

from __future__ import annotations

from galley.cli.parser import CommandParser


def parser() -> CommandParser:
    return CommandParser(
        "models",
        "List the model families, all or those that a word occurs in: title, kind of layers, "
        "architecture, and a checkpoint that has it.",
        [],
        positionals=(("SEARCH", "part of a title, an architecture or a checkpoint's name"),),
        examples=("galley models", "galley models gemma", "galley models mixture"),
    )


def main(argv: list[str]) -> int:
    words = parser().parse(argv).positionals
    from galley.models.catalogue import catalogue

    rows = list(catalogue(" ".join(words)))
    for row in rows:
        print(f"{row.title:<28}{row.kind:<11}{row.architecture:<30}{row.checkpoint}")
    if not rows:
        print("No family has that word. Others of the transformers library run with it installed.")
    return 0
