"""The shape that most fusions have: two nodes that follow each other become one."""

from __future__ import annotations

from collections.abc import Callable

from galley.kernels.program import Node

#: The pair's replacement, or None where it does not fit; the third argument is the whole program.
Fuse = Callable[[Node, Node, list[Node]], Node | None]


def fuse_neighbours(nodes: list[Node], fuse: Fuse) -> list[Node]:
    """Each pair of neighbours replaced where `fuse` gives one node for both, left to right."""
    fused: list[Node] = []
    for node in nodes:
        both = fuse(fused[-1], node, nodes) if fused else None
        if both is None:
            fused.append(node)
        else:
            fused[-1] = both
    return fused
