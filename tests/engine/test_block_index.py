"""The block index is right at whatever moment the engine is killed."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

from galley.batch import EMPTY_I32, GroupSpec, RequestTable
from galley.engine.block_index import BlockIndex
from galley.engine.persistent_kv import KVFiles, map_file
from galley.kv import BlockHasher, BlockPool, KVCacheManager, StoredBlock

SIGNATURE = bytes(range(32))
BLOCKS = 12


@pytest.fixture
def files() -> Iterator[KVFiles]:
    made = KVFiles.make()
    assert made is not None
    yield made
    made.close()


def stored(block: int, key: bytes) -> StoredBlock:
    return StoredBlock(block, 0, key, 0, None, EMPTY_I32, None)


class Life:
    """One incarnation: a pool, its ledger, and what its blocks really hold (`bytes_of`)."""

    def __init__(self, files: KVFiles, signature: bytes = SIGNATURE, blocks: int = BLOCKS) -> None:
        self.index = BlockIndex(files, signature)
        self.memory = self.index.memory(blocks * 64).reshape(blocks, 64)
        self.pool = BlockPool(blocks)
        self.hasher = BlockHasher("sha256", 16, None)
        table = RequestTable(1, 16, [GroupSpec("full", 16, 4)])
        self.kv = KVCacheManager(table, self.pool, self.hasher, True, 16)
        self.restored = self.index.attach(self.kv)

    def cache(self, block: int, key: bytes) -> None:
        """A step that fills the block is planned."""
        if self.pool.cache_block(block, key):
            self.index.stored(stored(block, key))

    def write(self, block: int, key: bytes) -> None:
        self.memory[block] = np.frombuffer(key.ljust(64), np.uint8)

    def bytes_of(self, block: int) -> bytes:
        return self.memory[block].tobytes().rstrip()

    def fill(self, key: bytes) -> int:
        """A step that fills a block and ends."""
        (block,) = self.pool.allocate(1)
        self.cache(block, key)
        self.write(block, key)
        self.index.committed()
        return block


def test_contents_are_found_again_with_their_hashes(files: KVFiles) -> None:
    life = Life(files)
    assert (life.index.num_blocks, life.restored) == (None, 0)
    blocks = {key: life.fill(key) for key in (b"a", b"b" * 33)}
    root = life.hasher.root
    again = Life(files)
    assert (again.index.num_blocks, again.restored, again.hasher.root) == (BLOCKS, 2, root)
    for key, block in blocks.items():
        assert again.pool.lookup(key) == block
        assert again.bytes_of(block) == key
    assert again.pool.num_free == BLOCKS - 1
    again.pool.check_integrity()


def test_a_step_that_has_not_ended_has_written_nothing(files: KVFiles) -> None:
    life = Life(files)
    (block,) = life.pool.allocate(1)
    life.cache(block, b"a")
    assert Life(files).restored == 0


def test_a_block_that_is_allocated_again_has_lost_its_content(files: KVFiles) -> None:
    life = Life(files)
    block = life.fill(b"a")
    life.pool.free([block])
    life.pool.allocate(BLOCKS - 1)
    assert Life(files).restored == 0


def test_a_step_that_was_undone_has_written_nothing(files: KVFiles) -> None:
    life = Life(files)
    (block,) = life.pool.allocate(1)
    life.cache(block, b"a")
    life.pool.uncache([block])
    life.index.committed()
    assert Life(files).restored == 0


def test_a_cache_that_was_reset_is_empty(files: KVFiles) -> None:
    life = Life(files)
    life.pool.free([life.fill(b"a")])
    assert life.kv.reset_prefix_cache()
    assert Life(files).restored == 0


@pytest.mark.parametrize("change", ["signature", "size", "discarded"])
def test_contents_with_another_signature_are_discarded(files: KVFiles, change: str) -> None:
    Life(files).fill(b"a")
    if change == "signature":
        life = Life(files, b"x" * 32)
        assert life.index.num_blocks is None
    elif change == "size":
        life = Life(files, blocks=BLOCKS + 1)
    else:
        files.discard()
        assert os.fstat(files.kv).st_size == os.fstat(files.index).st_size == 0
        life = Life(files)
    assert life.restored == 0
    life.fill(b"b")
    assert Life(files, SIGNATURE if change != "signature" else b"x" * 32).restored == (
        0 if change == "size" else 1
    )


def test_an_incomplete_entry_is_skipped(files: KVFiles) -> None:
    life = Life(files)
    good, torn = life.fill(b"a" * 32), life.fill(b"b" * 32)
    whole = mmap.mmap(files.index, 0)
    start = 128 + 64 * torn
    for byte in (0, 4, 5, 20, 36):
        before = whole[start + byte]
        whole[start + byte] = before ^ 1
        again = Life(files)
        assert list(again.pool.index.values()) == [good]
        again.index.stored(stored(torn, b"b" * 32))
        again.index.committed()
        assert Life(files).restored == 2


def test_memory_is_taken_only_where_it_is_written(files: KVFiles) -> None:
    mapped = np.frombuffer(map_file(files.kv, 1 << 40), np.uint8)
    mapped[1 << 39] = 1
    assert os.fstat(files.kv).st_blocks * 512 <= 4 << 20
    assert mapped[-1] == 0


class Killed(Exception):
    pass


def run_until_killed(life: Life, rng: random.Random, keys: list[bytes]) -> None:
    """Steps of a busy engine, killed at a random moment of any of them."""

    def moment() -> None:
        if rng.random() < 0.02:
            raise Killed

    held: list[int] = []
    while True:
        pool = life.pool
        while held and (rng.random() < 0.5 or pool.num_free < 3):
            pool.free([held.pop(rng.randrange(len(held)))])
            moment()
        for block in (new := pool.allocate(rng.randint(0, min(3, pool.num_free)))):
            held.append(block)
        moment()
        planned = [(block, rng.choice(keys)) for block in new if rng.random() < 0.8]
        for block, key in planned:
            life.cache(block, key)
        if planned and rng.random() < 0.1:
            pool.uncache([planned.pop()[0]])
        moment()
        # The device works: it overwrites what was handed out, in no particular order.
        for block in new:
            life.write(block, b"half")
            moment()
        for block, key in planned:
            life.write(block, key)
            moment()
        life.index.committed()
        moment()


@pytest.mark.parametrize("seed", range(40))
def test_whenever_it_is_killed_the_entries_are_true(files: KVFiles, seed: int) -> None:
    rng = random.Random(seed)
    keys = [bytes([65 + i]) * 32 for i in range(20)]
    restored = 0
    for _ in range(10):
        life = Life(files)
        restored += life.restored
        life.pool.check_integrity()
        for key, block in life.pool.index.items():
            assert life.bytes_of(block) == key
        with pytest.raises(Killed):
            run_until_killed(life, rng, keys)
    assert restored
