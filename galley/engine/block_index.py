"""The index of a KV cache that outlives its engine: which block holds which content.

    header   [magic][signature][number of blocks][length][root of the hashes]
    entry b  [crc32: u32][length: u8][key]          one per block, zeros = unknown

A block's content has a key, the hash of all tokens up to its end (`kv.hashing`). The manager
reports a key when the step that fills the block is planned; the entry is written when that step has
ended (`committed`), and erased before the block is allocated again. So if the engine is killed
from outside, an entry is true or absent. The next engine adds the blocks to its prefix index, and a
replayed request hits the cache for nearly all of its tokens.

After a crash the engine may have written anything anywhere: then the launcher discards it all.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from galley.engine.observers import StepObserver
from galley.engine.persistent_kv import KVFiles, map_file
from galley.kv import KVCacheManager, StoredBlock

_MAGIC = b"galleykv"
_HEADER = struct.Struct("<8s32sqB32s")
_FIRST = 128
_ENTRY = 64
_KEY_AT = 5
_LONGEST_KEY = _ENTRY - _KEY_AT


class BlockIndex(StepObserver):
    """One incarnation's view of the persistent files; a `KVListener` of its KV cache.

    Args:
        signature: 32 bytes; contents with another signature are discarded.

    Attributes:
        num_blocks: that of the previous incarnation if its contents can be used, else None.
        used: the cache is in the persistent memory.
    """

    def __init__(self, files: KVFiles, signature: bytes) -> None:
        assert len(signature) == 32
        self._files = files
        self._signature = signature
        self.num_blocks: int | None = None
        self.used = False
        self._root = b""
        self._pending: dict[int, bytes] = {}
        self._written: set[int] = set()
        header = os.pread(files.index, _HEADER.size, 0)
        if header[:40] == _MAGIC + signature:
            _, _, self.num_blocks, length, root = _HEADER.unpack(header)
            self._root = root[:length]
        else:
            files.discard()

    def memory(self, size: int) -> NDArray[np.uint8]:
        """The cache's bytes as the previous incarnation left them, or zeros."""
        self.used = True
        return np.frombuffer(map_file(self._files.kv, size), np.uint8)

    def attach(self, kv: KVCacheManager) -> int:
        """Cache what is there in a KV cache that has not been used yet, and listen to it from now
        on. Returns how many blocks hold something.
        """
        pool, hasher = kv.pool, kv.hasher
        size = _FIRST + _ENTRY * pool.num_blocks
        self._map = map_file(self._files.index, size)
        if self.num_blocks == pool.num_blocks:
            hasher.root = self._root
            entries = dict(self._entries())
            self._written = pool.restore(entries)
            for block in entries.keys() - self._written:
                self._erase(block)
        else:
            self._map[_FIRST:] = bytes(size - _FIRST)
        root = hasher.root
        header = (_MAGIC, self._signature, pool.num_blocks, len(root), root)
        _HEADER.pack_into(self._map, 0, *header)
        kv.listeners.append(self)
        return len(self._written)

    def committed(self) -> None:
        """The step has ended: write the entries of the blocks that it has filled."""
        if not self._pending:
            return
        for block, key in self._pending.items():
            start = _FIRST + _ENTRY * block
            body = bytes((len(key),)) + key
            entry = struct.pack("<I", _crc(block, body)) + body
            self._map[start : start + len(entry)] = entry
        self._written.update(self._pending)
        self._pending.clear()

    # ------------------------------------------------------------------ KVListener

    def stored(self, stored: StoredBlock) -> None:
        if len(stored.key) <= _LONGEST_KEY:
            self._pending[stored.block] = stored.key

    def removed(self, block: int, key: bytes) -> None:
        if self._pending.pop(block, None) is None and block in self._written:
            self._erase(block)
            self._written.discard(block)

    def hit(self, blocks: list[int]) -> None:
        """Hits do not change contents."""

    def cleared(self) -> None:
        self._pending.clear()
        for block in self._written:
            self._erase(block)
        self._written.clear()

    # ------------------------------------------------------------------ entries

    def _erase(self, block: int) -> None:
        start = _FIRST + _ENTRY * block
        self._map[start : start + _KEY_AT] = bytes(_KEY_AT)

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        """Block and key of each entry that was written completely."""
        table = np.frombuffer(self._map, np.uint8, offset=_FIRST).reshape(-1, _ENTRY)
        for block in np.flatnonzero(table[:, 4]).tolist():
            entry = table[block].tobytes()
            body = entry[4 : _KEY_AT + entry[4]]
            if entry[:4] == struct.pack("<I", _crc(block, body)):
                yield block, body[1:]
            else:
                self._erase(block)


def _crc(block: int, body: bytes) -> int:
    return zlib.crc32(body, block)
