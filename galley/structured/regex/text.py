"""Regular expression trees as text for Rust's regex crate."""

from __future__ import annotations

from galley.structured.regex import charset
from galley.structured.regex.syntax import Chars, Concat, Either, Repeat, Tree


def render(tree: Tree) -> str:
    """The text of a tree that has no anchors. It matches when it matches the whole string."""
    match tree:
        case Chars(ranges):
            return _chars(ranges)
        case Concat(parts):
            return "".join(
                f"(?:{render(part)})" if isinstance(part, Either) else render(part)
                for part in parts
            )
        case Either(options):
            return "|".join(render(option) for option in options)
        case Repeat(body, least, most):
            inner = render(body)
            if not isinstance(body, Chars):
                inner = f"(?:{inner})"
            return inner + _bounds(least, most)
    raise AssertionError(tree)


def _bounds(least: int, most: int | None) -> str:
    marks: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    if (least, most) in marks:
        return marks[least, most]
    if most is None:
        return f"{{{least},}}"
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


def _chars(ranges: charset.Charset) -> str:
    if ranges == charset.ALL:
        return "(?s:.)"
    if not ranges:
        return "[a&&b]"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0])
    items = (_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in ranges)
    return f"[{''.join(items)}]"


def _char(code: int) -> str:
    character = chr(code)
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{{{code:X}}}"
