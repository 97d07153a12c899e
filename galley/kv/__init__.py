"""KV cache bookkeeping: block pool, prefix index, groups and layout. It never sees the bytes."""

from galley.kv.capacity import Capacity, capacity, longest_sequence
from galley.kv.groups import make_policies
from galley.kv.hashing import BlockHasher, ExtraKeys, HashChain
from galley.kv.layout import CacheSpec, KVLayout, Place, plan_layout
from galley.kv.listener import KVListener, StoredBlock
from galley.kv.manager import Hit, KVCacheManager
from galley.kv.pool import NULL_BLOCK, BlockPool

__all__ = [
    "NULL_BLOCK",
    "BlockHasher",
    "BlockPool",
    "CacheSpec",
    "Capacity",
    "ExtraKeys",
    "HashChain",
    "Hit",
    "KVCacheManager",
    "KVLayout",
    "KVListener",
    "Place",
    "StoredBlock",
    "capacity",
    "longest_sequence",
    "make_policies",
    "plan_layout",
]
