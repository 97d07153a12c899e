"""`galley cache`: packed weights on disk, listed and removed."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError

if TYPE_CHECKING:
    from galley.runner.cache_files import CacheFile

ACTIONS = ("list", "prune", "clear")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class CacheFlags:
    """Options"""

    older_than: str | None = None
    """prune: remove files that were last used so long ago (accepts 90m, 12h, 30d, 8w)."""
    max_size: int | None = None
    """prune: remove least recently used files until the rest has so many bytes (accepts 512m, 40G).
    """
    json: bool = False
    """Print JSON: the files, or those that were removed."""


def parser() -> CommandParser:
    return CommandParser(
        "cache",
        "List packed weights on disk, which make later starts of a model fast, or remove them: "
        "old ones (prune) or all (clear). Files that a running engine maps stay.",
        [CacheFlags],
        positionals=(("ACTION", "list, prune or clear"),),
        examples=("galley cache list", "galley cache prune --older-than 30d --max-size 40G"),
    )


def main(argv: list[str]) -> int:
    reader = parser()
    parsed = reader.parse(argv)
    action, *rest = parsed.positionals or ["list"]
    flags = make(CacheFlags, reader.split(parsed.values))
    if action not in ACTIONS or rest:
        shown = " ".join([action, *rest])
        raise ConfigError(f"galley cache {shown}: one of {', '.join(ACTIONS)} is needed")
    pruning = flags.older_than is not None or flags.max_size is not None
    if pruning != (action == "prune"):
        raise ConfigError(
            "galley cache prune needs --older-than or --max-size"
            if action == "prune"
            else f"--older-than and --max-size are for galley cache prune, not {action}"
        )
    return _run(action, flags)


def _run(action: str, flags: CacheFlags) -> int:
    from galley.runner.cache_files import list_files, remove_abandoned, remove_all, weights_folder

    folder = weights_folder()
    if action == "list":
        _print(f"Packed weights in {folder}", list_files(folder), flags.json)
        return 0
    if action == "prune":
        removed = _prune(flags)
    else:
        removed = remove_all(list_files(folder))
    remove_abandoned(folder)
    _print(f"Removed from {folder}", removed, flags.json)
    kept = list_files(folder)
    if action == "clear" and kept and not flags.json:
        print(f"{len(kept)} in use: not removed.")
    return 0


def _prune(flags: CacheFlags) -> list[CacheFile]:
    from galley.runner.cache_files import list_files, remove_all, shrink, weights_folder

    if flags.max_size is not None and flags.max_size < 0:
        raise ConfigError(f"--max-size {flags.max_size}: at least 0 is needed", field="max_size")
    folder, removed = weights_folder(), []
    if flags.older_than is not None:
        before = time.time() - seconds(flags.older_than)
        removed = remove_all(file for file in list_files(folder) if file.used <= before)
    if flags.max_size is not None:
        removed += shrink(folder, flags.max_size)
    return removed


def seconds(text: str) -> float:
    """Of a duration: a number and s, m, h, d or w. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text.strip())
    if match is None:
        raise ConfigError(
            f"--older-than {text}: a number and one of s, m, h, d, w is needed, such as 30d",
            field="older_than",
        )
    return float(match[1]) * _SECONDS[match[2]]


def _print(title: str, files: list[CacheFile], as_json: bool) -> None:
    from galley.runner.cache_files import is_used

    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "model": file.model,
                "bytes": file.num_bytes,
                "last_used": int(file.used),
                "in_use": is_used(file.path),
                "path": str(file.path),
            }
            for file in files
        ]
        print(json.dumps(rows, indent=2))
        return
    from galley.cli.bench.tables import print_table

    rows = [
        {
            "model": file.model,
            "size": _size(file.num_bytes),
            "last used": "in use" if is_used(file.path) else _ago(time.time() - file.used),
            "file": file.path.name,
        }
        for file in files
    ]
    print_table(title, rows)
    total = sum(file.num_bytes for file in files)
    print(f"{len(files)} file{'' if len(files) == 1 else 's'}, {_size(total)}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _ago(elapsed: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if elapsed >= length:
            count = int(elapsed / length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
