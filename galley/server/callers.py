"""Keys that tell clients apart for the scheduler: `--fairness-by api-key|user|address|header:NAME`.

Only a hash of it goes to the engine. Requests without it are one client's.
"""

from __future__ import annotations

import hashlib

import msgspec

from galley.frontend.caller import CALLER


class _User(msgspec.Struct):
    user: str | None = None


def note_caller(value: bytes) -> None:
    """Make this the caller of what the current task submits."""
    CALLER.set(hashlib.blake2b(value, digest_size=8).hexdigest() if value else "")


def note_user(body: bytes) -> None:
    """Make the field `user` of a body the caller; without a valid one there is no caller."""
    try:
        note_caller((msgspec.json.decode(body, type=_User).user or "").encode())
    except msgspec.DecodeError:
        note_caller(b"")
