"""The most common fusion: two nodes that follow each other become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from galley.kernels.program import Buffer, Node

#: Number of arguments of a program that read each buffer.
Readers = Counter[Buffer]
#: The node for a pair, or None where the pair stays.
Fuse = Callable[[Node, Node, Readers], Node | None]


def count_readers(nodes: Sequence[Node]) -> Readers:
    return Counter(
        symbol.buffer for node in nodes for symbol in (*node.reads.values(), *node.updates.values())
    )


def fuse_neighbours(nodes: list[Node], fuse: Fuse) -> list[Node]:
    """The program with each pair of neighbours replaced by the node that `fuse` gives for it, from
    left to right."""
    readers = count_readers(nodes)
    fused: list[Node] = []
    for node in nodes:
        both = fuse(fused[-1], node, readers) if fused else None
        if both is None:
            fused.append(node)
        else:
            fused[-1] = both
    return fused
