"""Checks a program before it runs: a node that reads what no node has written would read another
value's bytes, since buffers share memory."""

from __future__ import annotations

from collections.abc import Sequence

from galley.kernels.ops import native_op
from galley.kernels.program import OUTPUT, Buffer, Node, Symbol

#: Columns [start, stop) of a buffer that have been written.
Columns = list[tuple[int, int]]
#: The op that reads what a layer's cache has of this step. Others with a layer write it.
CACHE_READER = "attention"


def verify(nodes: Sequence[Node]) -> None:
    """Check a program, recorded or fused.

    Raises:
        ValueError: an op does not exist, a node reads columns or the cache of a layer that no node
            before it has written, or the rows of its values do not agree.
    """
    written: dict[Buffer, Columns] = {}
    cached: set[int] = set()
    for i, node in enumerate(nodes):
        if node.op != OUTPUT and native_op(node.op) is None:
            raise _error(i, node, "there is no such native op")
        if node.layer is not None:
            if node.op != CACHE_READER:
                cached.add(node.layer.index)
            elif node.layer.index not in cached:
                raise _error(i, node, "reads a cache, which no node before it has written")
        for values in (node.reads, node.updates):
            for name, value in values.items():
                if not _covers(written.get(value.buffer, ()), value):
                    raise _error(i, node, f"reads {name}, which no node before it has written")
        for values in (node.writes, node.updates):
            for value in values.values():
                written.setdefault(value.buffer, []).append(
                    (value.start, value.start + value.columns)
                )
        if node.op != OUTPUT:
            _check_rows(i, node)


def _covers(written: Sequence[tuple[int, int]], value: Symbol) -> bool:
    start, stop = value.start, value.start + value.columns
    if (start, stop) in written:
        return True
    for begin, end in sorted(written):
        if begin <= start < end:
            start = end
    return start >= stop


def _check_rows(i: int, node: Node) -> None:
    native = native_op(node.op)
    rows = {} if native is None else native.rows
    common = None
    for name, value in (*node.reads.items(), *node.updates.items(), *node.writes.items()):
        dimension = value.buffer.rows
        if name in rows:
            if rows[name] is not None and dimension != rows[name]:
                raise _error(i, node, f"{name} has rows of {dimension}, not {rows[name]}")
        elif common is None:
            common = dimension
        elif dimension != common:
            raise _error(i, node, f"{name} has rows of {dimension}, others of {common}")


def _error(i: int, node: Node, what: str) -> ValueError:
    return ValueError(f"node {i} ({node.op}): {what}")
