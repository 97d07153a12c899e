"""Content hashes of full KV blocks: a block's hash covers its parent's hash, tokens and extras.

    root ──▶ h0 = H(root, tokens[0:B], extras(0)) ──▶ h1 = H(h0, tokens[B:2B], extras(1)) ──▶ …

Two blocks have the same hash if and only if everything up to their end is the same. The root is
random in each engine unless PYTHONHASHSEED is set, so that a client cannot construct a collision;
engines with the same seed compute the same hashes. `sha256_cbor` and `xxhash_cbor` hash the
canonical CBOR of ``[parent, [tokens], extras | null]``, byte for byte as vLLM does: KV-aware
routers compute the same hashes. Knows no block ids, pools or requests.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from galley.batch import I32
from galley.errors import ConfigError

log = logging.getLogger(__name__)

Digest = Callable[[bytes], bytes]


class ExtraKeys(msgspec.Struct, frozen=True):
    """Inputs of a block's content besides its tokens. Blocks with other keys are not shared.

    Attributes:
        every: keys of every block (the number of an adapter's load).
        at: keys of single blocks by index (the cache salt at 0; hashes of media in a block).
    """

    every: tuple[Any, ...] = ()
    at: dict[int, tuple[Any, ...]] = {}

    def of(self, index: int) -> tuple[Any, ...] | None:
        return self.every + self.at.get(index, ()) or None


class HashChain:
    """The hashes of one sequence's full blocks that have been computed so far."""

    __slots__ = ("extras", "hashes")

    def __init__(self, extras: ExtraKeys | None = None) -> None:
        self.extras = extras
        self.hashes: list[bytes] = []


class BlockHasher:
    """Computes the hashes of chains.

    Args:
        algorithm: "sha256", "sha256_cbor", "xxhash" or "xxhash_cbor".
        block_size: tokens per block.
        seed: determines the root hash; None = a random root.

    Raises:
        ConfigError: unknown algorithm, or one whose package is not installed.
    """

    def __init__(self, algorithm: str, block_size: int, seed: str | None) -> None:
        self.block_size = block_size
        self.digest = _digest_of(algorithm)
        self._cbor = algorithm.endswith("_cbor")
        if seed is None:
            self.root = os.urandom(32)
        else:
            self.root = self.digest(cbor(seed) if self._cbor else seed.encode())

    @classmethod
    def from_environment(cls, algorithm: str, block_size: int) -> BlockHasher:
        """Like the constructor, with PYTHONHASHSEED as the seed."""
        seed = os.environ.get("PYTHONHASHSEED")
        if seed is None and algorithm.endswith("_cbor"):
            log.warning(
                "PYTHONHASHSEED is not set, so the block hashes of this engine differ from those "
                "of others. Set it to the same value everywhere if they must be equal."
            )
        return cls(algorithm, block_size, seed)

    def extend(self, chain: HashChain, token_ids: I32, num_blocks: int) -> None:
        """Compute hashes until `chain` has `num_blocks`; `token_ids` is the whole sequence."""
        hashes, extras = chain.hashes, chain.extras
        first = len(hashes)
        if first >= num_blocks:
            return
        size = self.block_size
        tokens = token_ids[first * size : num_blocks * size]
        parent = hashes[-1] if hashes else self.root
        digest = self.digest
        if self._cbor:
            ids = tokens.tolist()
            for i in range(num_blocks - first):
                extra = extras.of(first + i) if extras else None
                parent = digest(cbor((parent, ids[i * size : (i + 1) * size], extra)))
                hashes.append(parent)
            return
        data, width = tokens.tobytes(), 4 * size
        if extras is None:
            for i in range(0, len(data), width):
                parent = digest(parent + data[i : i + width])
                hashes.append(parent)
            return
        # Parent and tokens have fixed lengths, so appending the extras keeps the input injective.
        for i in range(num_blocks - first):
            extra = extras.of(first + i)
            suffix = cbor(extra) if extra else b""
            parent = digest(parent + data[i * width : (i + 1) * width] + suffix)
            hashes.append(parent)


def _digest_of(algorithm: str) -> Digest:
    if algorithm in ("sha256", "sha256_cbor"):
        return _sha256
    if algorithm in ("xxhash", "xxhash_cbor"):
        try:
            import xxhash
        except ImportError:
            raise ConfigError(
                f"--prefix-caching-hash-algo {algorithm} needs the package xxhash "
                "(pip install xxhash), or choose sha256.",
                field="prefix_caching_hash_algo",
            ) from None
        digest: Digest = xxhash.xxh3_128_digest
        return digest
    raise ConfigError(
        f"--prefix-caching-hash-algo {algorithm} is unknown: "
        "choose sha256, sha256_cbor, xxhash or xxhash_cbor.",
        field="prefix_caching_hash_algo",
    )


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def cbor(value: Any) -> bytes:
    """Canonical CBOR (RFC 8949, 4.2.1) of None, bools, ints, texts, bytes, lists and tuples."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        data = value.encode()
        return _head(3, len(data)) + data
    if isinstance(value, list | tuple):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    raise TypeError(f"no canonical CBOR for a {type(value).__name__}")


def _head(major: int, n: int) -> bytes:
    """Major type and the shortest form of its argument."""
    if n < 24:
        return bytes((major << 5 | n,))
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << 8 * width:
            return bytes((major << 5 | info,)) + n.to_bytes(width, "big")
    raise OverflowError(f"{n} is beyond 64 bits")
