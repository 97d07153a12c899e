"""Programs that the verifier refuses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from galley.kernels.cpu import CpuBackend
from galley.kernels.passes import FUSIONS, apply
from galley.kernels.program import LOGITS, TOKENS, Node, Symbol
from galley.kernels.recorder import record
from galley.kernels.verify import verify
from galley.kv.format import KVFormat
from tests.kernels.arrangements import ARRANGEMENTS, Arrangement


@pytest.fixture
def nodes():
    return record(Arrangement("qk_norm", CpuBackend("bf16", threads=1)), KVFormat("bfloat16"))[0]


@pytest.mark.parametrize("name", list(ARRANGEMENTS))
def test_what_is_recorded_and_fused_is_accepted(name):
    nodes, _ = record(Arrangement(name, CpuBackend("bf16", threads=1)), KVFormat("bfloat16"))
    verify(nodes)
    verify(apply(nodes, FUSIONS))


def test_a_program_without_one_of_its_nodes_is_refused(nodes):
    """Every node writes what a later one reads, but the last and sums in place."""
    for i, node in enumerate(nodes[:-1]):
        if node.op == "add":
            continue
        with pytest.raises(ValueError, match="which no node before it has written"):
            verify([*nodes[:i], *nodes[i + 1 :]])


def test_the_error_names_the_node_and_the_argument(nodes):
    (i, _), *_ = ((i, node) for i, node in enumerate(nodes) if node.op == "rope")
    later = next(j for j, node in enumerate(nodes) if node.op == "quantize" and j > i)
    with pytest.raises(ValueError, match=rf"node {later - 1} \(quantize\): reads x, which no node"):
        verify([*nodes[:i], *nodes[i + 1 :]])


def test_all_columns_must_be_written():
    out = Symbol.new(TOKENS, 64)
    parts = [Symbol(out.buffer, 32, 0), Symbol(out.buffer, 32, 32)]
    writers = [Node("embedding", writes={"out": part}) for part in parts]
    reader = Node("rms_norm", {"x": out}, {"out": Symbol.new(TOKENS, 64)})
    verify([writers[1], writers[0], reader])
    with pytest.raises(ValueError, match=r"node 1 .*reads x"):
        verify([writers[0], reader])
    with pytest.raises(ValueError, match=r"node 1 .*reads x"):
        verify([writers[1], reader])


def test_an_unknown_op_is_refused(nodes):
    nodes[3] = replace(nodes[3], op="convolve")
    with pytest.raises(ValueError, match=r"node 3 \(convolve\): there is no such native op"):
        verify(nodes)


def test_rows_must_agree():
    x, y = Symbol.new(TOKENS, 8), Symbol.new(LOGITS, 8)
    start = Node("embedding", writes={"out": x})
    with pytest.raises(ValueError, match="out has rows of logits, others of tokens"):
        verify([start, Node("rms_norm", {"x": x}, {"out": y})])
    with pytest.raises(ValueError, match="out has rows of tokens, not logits"):
        verify([start, Node("select_rows", {"x": x}, {"out": Symbol.new(TOKENS, 8)})])
    verify([start, Node("select_rows", {"x": x}, {"out": y})])


class RopeOfLogits(Arrangement):
    """Rotates rows that have no position."""

    def logits(self, ops, h, ctx):
        q = ops.rope(ops.select_rows(h, ctx.logit_index), ctx.positions, self.table, 32)
        return ops.linear(q, [self.w["head"]])


def test_a_model_is_verified_when_it_is_recorded():
    with pytest.raises(ValueError, match="x has rows of logits, not tokens"):
        record(RopeOfLogits("plain", CpuBackend("f32", threads=1)), KVFormat("float32"))


def test_a_pass_that_drops_a_node_is_found(nodes):
    def drops_rope(nodes):
        return [node for node in nodes if node.op != "rope"]

    with pytest.raises(ValueError, match="no node before it has written"):
        apply(nodes, [drops_rope])
