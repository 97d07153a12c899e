"""Buffers that live at the same time never share a byte; others do."""

from __future__ import annotations

import mmap
import os
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from galley.kernels.arena import ALIGNMENT, aligned_bytes, lifetimes, plan_arena, release_pages
from galley.kernels.program import TOKENS, Node, Symbol

SIZES = st.integers(0, 3000)


@st.composite
def programs(draw):
    """Nodes over a handful of buffers, each of them touched by one or more nodes."""
    values = [Symbol.new(TOKENS, size) for size in draw(st.lists(SIZES, max_size=12))]
    nodes = []
    for _ in range(draw(st.integers(0, 15))):
        chosen = draw(st.lists(st.sampled_from(values), max_size=4)) if values else []
        nodes.append(Node("op", reads={str(i): value for i, value in enumerate(chosen)}))
    return nodes


@given(programs())
def test_live_buffers_do_not_overlap(nodes):
    plan = plan_arena(nodes, lambda buffer: buffer.columns)
    lives = lifetimes(nodes)
    assert plan.spans.keys() == lives.keys()
    spans = [(buffer, plan.spans[buffer]) for buffer in lives]
    for buffer, span in spans:
        assert span.start % ALIGNMENT == 0
        assert buffer.columns <= span.size
        assert span.start + span.size <= plan.size
    for i, (a, span_a) in enumerate(spans):
        for b, span_b in spans[:i]:
            together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            apart = (
                span_a.start + span_a.size <= span_b.start
                or span_b.start + span_b.size <= span_a.start
            )
            assert apart or not together


def test_a_chain_needs_two_buffers():
    """Each node reads what the one before wrote."""
    values = [Symbol.new(TOKENS, 1000) for _ in range(20)]
    nodes = [Node("op", {"x": x}, {"out": out}) for x, out in pairwise(values)]
    assert plan_arena(nodes, lambda buffer: buffer.columns).size == 2 * 1024


def test_a_norm_works_in_place_where_its_input_is_not_read_later():
    """Two norms in a row; the third node reads the second's input as well."""
    a, b, c, d = (Symbol.new(TOKENS, 1000) for _ in range(4))
    nodes = [
        Node("layer_norm", {"x": a}, {"out": b}),
        Node("layer_norm", {"x": b}, {"out": c}),
        Node("op", {"x": c, "y": b}, {"out": d}),
    ]
    plan = plan_arena(nodes, lambda buffer: buffer.columns)
    assert plan.spans[a.buffer] is plan.spans[b.buffer]
    assert plan.size == 3 * 1024
    assert plan_arena(nodes[:2], lambda buffer: buffer.columns).size == 1024


def test_aligned_bytes():
    memory = aligned_bytes(1000, zeros=True)
    assert memory.ctypes.data % ALIGNMENT == 0
    assert len(memory) == 1000
    assert not memory.any()


def test_released_pages_are_zeros_and_take_no_memory():
    """Whole pages only, of shared and of private memory."""
    page = mmap.PAGESIZE
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * page)
    shared = np.frombuffer(mmap.mmap(fd, 8 * page), np.uint8)
    for memory in (shared, np.frombuffer(mmap.mmap(-1, 8 * page), np.uint8)):
        memory[:] = 1
        release_pages(memory[page // 2 : 5 * page + 7])
        # Reading a page allocates it again.
        assert os.fstat(fd).st_blocks * 512 == (4 if memory is shared else 8) * page
        assert memory.reshape(8, page).any(1).tolist() == [True] + [False] * 4 + [True] * 3
        assert memory.reshape(8, page).all(1).tolist() == [True] + [False] * 4 + [True] * 3
        release_pages(memory[10:20])
        assert memory[10:20].all()
    os.close(fd)
