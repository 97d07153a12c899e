"""[rms_norm of q's heads, of k's heads,] rope of q, of k, write_kv[, quantize of q]  →  rope_kv.

All of them read one buffer of a row's queries, keys and values, and rope_kv reads it once:

    [ q: heads * D | k: kv_heads * D | v: kv_heads * D ]

The nodes must follow each other, in the order in which a model calls them; any of them that another
node reads as well stays, and nothing is fused.
"""

from __future__ import annotations

import msgspec

from galley.kernels.passes.neighbours import Readers, count_readers
from galley.kernels.program import Constant, Kind, Node, Symbol


def fuse_rope_kv(nodes: list[Node]) -> list[Node]:
    readers = count_readers(nodes)
    fused: list[Node] = []
    skip = 0  # nodes that the last fused one replaces
    for i, node in enumerate(nodes):
        if skip:
            skip -= 1
            continue
        match = _match(fused, node, nodes[i + 1 : i + 2], readers)
        if match is None:
            fused.append(node)
            continue
        del fused[len(fused) - match.before :]
        fused.append(match.node)
        skip = match.after
    return fused


class _Match(msgspec.Struct, frozen=True):
    """The node for a run of nodes around a write_kv: so many before it, and after it."""

    node: Node
    before: int
    after: int


class _Heads(msgspec.Struct, frozen=True):
    """Heads of q or of k: columns of the source, the norm's weight and eps, the rotated value."""

    source: Symbol
    rope: Node
    norm: Node | None

    @property
    def rotated(self) -> Symbol:
        return self.rope.writes["out"]


def _match(before: list[Node], write: Node, after: list[Node], readers: Readers) -> _Match | None:
    if write.op != "write_kv" or len(before) < 2:
        return None
    q_rope, k_rope = before[-2:]
    norms = before[-4:-2]
    q, k = _heads(q_rope, norms, readers), _heads(k_rope, norms, readers)
    if q is None or k is None or k.rotated is not write.reads["k"]:
        return None
    if readers[k.rotated.buffer] != 1 or not _alike(q, k) or not _side_by_side(q, k, write):
        return None
    num_norms = sum(heads.norm is not None for heads in (q, k))
    if num_norms == 1 and before[-3] is not (q.norm or k.norm):
        return None  # another node stands between
    q_out, rounds = q.rotated, _rounds(after, q.rotated, readers)
    if rounds:
        q_out = after[0].writes["out"]
    return _Match(_fused(q, k, write, q_out), 2 + num_norms, int(rounds))


def _heads(rope: Node, norms: list[Node], readers: Readers) -> _Heads | None:
    if rope.op != "rope":
        return None
    x = rope.reads["x"]
    for norm in norms:
        if norm.op == "rms_norm" and norm.writes.get("out") is x:
            if "x" not in norm.reads or readers[x.buffer] != 1 or x.kind != Kind.f32:
                return None
            if norm.constants["weight"].shape != (rope.ints["head_dim"],):
                return None
            return _Heads(norm.reads["x"], rope, norm)
    return _Heads(x, rope, None)


def _alike(q: _Heads, k: _Heads) -> bool:
    """One table, one head size, one eps."""
    same_table = q.rope.constants["table"] is k.rope.constants["table"]
    same_eps = q.norm is None or k.norm is None or q.norm.floats == k.norm.floats
    return same_table and same_eps and q.rope.ints == k.rope.ints


def _side_by_side(q: _Heads, k: _Heads, write: Node) -> bool:
    v, qkv = write.reads["v"], q.source.buffer
    return (
        k.source.buffer is qkv
        and v.buffer is qkv
        and q.source.start == 0
        and k.source.start == q.source.columns
        and v.start == k.source.start + k.source.columns
        and v.start + v.columns == qkv.columns
    )


def _rounds(after: list[Node], q: Symbol, readers: Readers) -> bool:
    """Whether the next node rounds q to bf16, for the attention alone."""
    if not after or after[0].op != "quantize" or readers[q.buffer] != 1:
        return False
    quantize = after[0]
    return quantize.reads["x"] is q and quantize.writes["out"].kind == Kind.bf16


def _fused(q: _Heads, k: _Heads, write: Node, q_out: Symbol) -> Node:
    constants: dict[str, Constant] = dict(q.rope.constants)
    floats = dict(write.floats)
    for name, heads in (("q_weight", q), ("k_weight", k)):
        if heads.norm is not None:
            constants[name] = heads.norm.constants["weight"]
            floats |= heads.norm.floats
    qkv, head_dim = q.source.buffer, q.rope.ints["head_dim"]
    return Node(
        "rope_kv",
        reads={"qkv": Symbol(qkv, qkv.columns)},
        writes={"q_out": q_out},
        constants=constants,
        ints={
            **q.rope.ints,
            **write.ints,
            "heads": q.source.columns // head_dim,
            "kv_heads": k.source.columns // head_dim,
        },
        floats=floats,
        layer=write.layer,
    )
