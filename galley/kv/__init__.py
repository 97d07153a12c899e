"""The KV cache as bookkeeping: block pool, prefix index, groups. It never sees the bytes."""

from galley.kv.hashing import BlockHasher, ExtraKeys, HashChain
from galley.kv.manager import Hit, KVCacheManager
from galley.kv.pool import NULL_BLOCK, BlockListener, BlockPool

__all__ = [
    "NULL_BLOCK",
    "BlockHasher",
    "BlockListener",
    "BlockPool",
    "ExtraKeys",
    "HashChain",
    "Hit",
    "KVCacheManager",
]
