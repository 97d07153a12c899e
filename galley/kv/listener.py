"""Events of the prefix cache, for persistence and metrics."""

from __future__ import annotations

from typing import Protocol

import msgspec

from galley.batch import I32
from galley.kv.hashing import ExtraKeys


class StoredBlock(msgspec.Struct, frozen=True):
    """A full block that entered the prefix index.

    Attributes:
        block: its id.
        group: its KV group.
        key: hash of the sequence up to its end, with the group.
        index: its place in the sequence.
        parent: hash of the sequence up to its start; None for the first block.
        token_ids: [block_size] its tokens; valid during the call.
        extras: what its content depends on besides tokens, if anything.
    """

    block: int
    group: int
    key: bytes
    index: int
    parent: bytes | None
    token_ids: I32
    extras: ExtraKeys | None


class KVListener(Protocol):
    """Notified by `KVCacheManager` when the prefix index changes or is hit."""

    def stored(self, stored: StoredBlock) -> None:
        """A block was cached. The step that computes its content has been planned, not run."""

    def removed(self, block: int, key: bytes) -> None:
        """A block lost its key: it was evicted, or its content was never computed."""

    def hit(self, blocks: list[int]) -> None:
        """A new sequence uses these cached blocks."""

    def cleared(self) -> None:
        """All blocks lost their keys."""
