"""GPT-2's byte alphabet: every byte has a printable character, so that tokens are text.

Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 on, so that a
space is "Ġ" and a line feed "Ċ".
"""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(0x100 + i): byte for i, byte in enumerate(others)}


#: character → byte
BYTE_OF_CHAR: dict[str, int] = _alphabet()
#: str.translate table, character → the Latin-1 character of its byte.
_TO_LATIN1 = {ord(char): byte for char, byte in BYTE_OF_CHAR.items()}
_ALPHABET = frozenset(BYTE_OF_CHAR)


def token_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with a character outside the alphabet
    (an added one, with a space for instance) stands for its own UTF-8."""
    if _ALPHABET.issuperset(token):
        return token.translate(_TO_LATIN1).encode("latin-1")
    return token.encode()
