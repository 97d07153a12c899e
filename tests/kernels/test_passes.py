"""Fusions: which pairs are fused and which are not, and that no bit changes."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels.cpu import CpuBackend
from galley.kernels.ops import KVLayer, Ops
from galley.kernels.ops.elementwise import FUNCTIONS
from galley.kernels.passes import FUSIONS, apply
from galley.kernels.passes.accumulate import accumulate_linear
from galley.kernels.passes.add_norm import fuse_add_norm
from galley.kernels.passes.epilogue import fuse_epilogue
from galley.kernels.passes.quantize import fuse_quantize
from galley.kernels.passes.round_qkv import round_qkv
from galley.kernels.program import Kind, Node
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.recorder import Recorder, RecordingContext
from galley.kernels.verify import verify
from galley.kernels.weights import pack
from galley.kv.format import KVFormat
from galley.quant import read_weight
from tests.models.checkpoints import quantized
from tests.models.driver import LIMITS, Driver

CTX = RecordingContext()
HIDDEN = 64


def weight(n: int, k: int, dtype: str = "float32", seed: int = 0):
    """A random packed weight; "w8a8" has one scale per output, for rows with one scale."""
    rng = np.random.default_rng(seed + 1000 * n + k)
    if dtype == "w8a8":
        codes = rng.integers(1, 256, (n, k)).astype(np.uint8)
        scale = rng.uniform(0.5, 1, (n, 1)).astype(np.float32) / 1000
        return pack(
            QuantizedWeight(q=codes, bits=8, group=0, zero=128, scale=scale, activations="token")
        )
    values = (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)
    dense = "f32" if dtype == "float32" else "bf16"
    return pack(read_weight(quantized("w", values, dtype)), dense)


def norm_weight(seed: int = 0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, HIDDEN).astype(np.float32)


@pytest.fixture
def recording():
    recorder = Recorder(KVFormat("float32"))
    ops = Ops(recorder)
    return recorder, ops, ops.embedding(weight(131, HIDDEN), CTX.token_ids)


def names(nodes: list[Node]) -> list[str]:
    return [node.op for node in nodes][1:]  # without the embedding


def test_linear_and_add_become_one(recording):
    recorder, ops, h = recording
    x = ops.rms_norm(h, norm_weight(), 1e-5)
    h = ops.add(h, ops.linear(x, [weight(HIDDEN, HIDDEN)]))
    nodes = accumulate_linear(recorder.nodes)
    assert names(nodes) == ["rms_norm", "linear"]
    assert nodes[-1].ints["accumulate"] == 1
    assert nodes[-1].updates["out"].buffer is h.buffer
    assert not nodes[-1].writes


def test_accumulate_keeps_a_value_that_is_read_again(recording):
    recorder, ops, h = recording
    y = ops.linear(ops.rms_norm(h, norm_weight(), 1e-5), [weight(HIDDEN, HIDDEN)])
    ops.rms_norm(ops.add(h, y), norm_weight(), 1e-5)
    ops.rms_norm(y, norm_weight(), 1e-5)
    assert names(accumulate_linear(recorder.nodes)) == [
        *("rms_norm", "linear", "add", "rms_norm", "rms_norm")
    ]


def test_accumulate_does_not_fuse_parts(recording):
    """Two weights side by side: the add must wait for both."""
    recorder, ops, h = recording
    y = ops.linear(ops.rms_norm(h, norm_weight(), 1e-5), [weight(48, HIDDEN), weight(16, HIDDEN)])
    ops.add(h, y)
    assert names(accumulate_linear(recorder.nodes)) == ["rms_norm", "linear", "linear", "add"]


def test_accumulate_does_not_fuse_a_layer_that_reads_the_stream(recording):
    recorder, ops, h = recording
    ops.add(h, ops.linear(h, [weight(HIDDEN, HIDDEN)]))
    assert names(accumulate_linear(recorder.nodes)) == ["linear", "add"]


def test_add_and_norm_become_one(recording):
    recorder, ops, h = recording
    y = ops.linear(ops.rms_norm(h, norm_weight(), 1e-5), [weight(48, HIDDEN), weight(16, HIDDEN)])
    h = ops.add(h, y)
    out = ops.rms_norm(h, norm_weight(1), 1e-6)
    nodes = fuse_add_norm(recorder.nodes)
    assert names(nodes) == ["rms_norm", "linear", "linear", "rms_norm"]
    assert nodes[-1].reads == {"add": y}
    assert nodes[-1].updates["x"].buffer is h.buffer
    assert nodes[-1].writes["out"] is out


def test_add_norm_does_not_fuse_the_norm_of_another_value(recording):
    recorder, ops, h = recording
    y = ops.linear(h, [weight(HIDDEN, HIDDEN)])
    z = ops.linear(y, [weight(HIDDEN, HIDDEN)])
    ops.add(h, y)
    ops.rms_norm(z, norm_weight(), 1e-5)
    assert names(fuse_add_norm(recorder.nodes)) == ["linear", "linear", "add", "rms_norm"]


def test_add_norm_does_not_fuse_the_norm_of_some_columns(recording):
    recorder, ops, h = recording
    y = ops.linear(h, [weight(HIDDEN, HIDDEN)])
    left, _ = ops.split(ops.add(h, y), [HIDDEN // 2, HIDDEN // 2])
    ops.rms_norm(left, norm_weight()[: HIDDEN // 2], 1e-5)
    assert names(fuse_add_norm(recorder.nodes)) == ["linear", "add", "rms_norm"]


@pytest.mark.parametrize(("interleaved", "fused"), [(True, ["linear"]), (False, None)])
@pytest.mark.parametrize(("op", "epilogue"), [("silu_and_mul", 1), ("gelu_and_mul", 2)])
def test_gated_epilogue(recording, interleaved, fused, op, epilogue):
    recorder, ops, h = recording
    out = getattr(ops, op)(ops.linear(h, [weight(64, HIDDEN)]), interleaved)
    nodes = fuse_epilogue(recorder.nodes)
    assert names(nodes) == (fused or ["linear", op])
    if fused:
        assert nodes[-1].ints["epilogue"] == epilogue
        assert nodes[-1].writes["out"] is out


def test_gated_epilogue_does_not_fuse_parts(recording):
    recorder, ops, h = recording
    gate_up = ops.linear(h, [weight(32, HIDDEN, seed=1), weight(32, HIDDEN, seed=2)])
    ops.silu_and_mul(gate_up, interleaved=True)
    assert names(fuse_epilogue(recorder.nodes)) == ["linear", "linear", "silu_and_mul"]


@pytest.mark.parametrize(
    ("function", "fused"), [("gelu", True), ("silu", True), ("sigmoid", False)]
)
def test_epilogue_of_each_number(recording, function, fused):
    recorder, ops, h = recording
    out = ops.elementwise(ops.linear(h, [weight(64, HIDDEN)]), function)
    nodes = fuse_epilogue(recorder.nodes)
    assert names(nodes) == (["linear"] if fused else ["linear", "elementwise"])
    if fused:
        assert FUNCTIONS[nodes[-1].ints["function"]] == function
        assert nodes[-1].writes["out"] is out


@pytest.mark.parametrize("dtype", ["bfloat16", "Q4_0", "Q4_1", "w8a8"])
def test_quantize_is_stored_by_the_norm(recording, dtype):
    recorder, ops, h = recording
    ops.linear(ops.rms_norm(h, norm_weight(), 1e-5), [weight(16, HIDDEN, dtype)])
    nodes = fuse_quantize(recorder.nodes)
    assert names(nodes) == ["rms_norm", "linear"]
    assert nodes[1].writes["out"] is nodes[2].reads["x"]
    assert nodes[1].writes["out"].kind != Kind.f32


def test_quantize_keeps_rows_that_other_nodes_read(recording):
    recorder, ops, h = recording
    x = ops.rms_norm(h, norm_weight(), 1e-5)
    ops.linear(x, [weight(16, HIDDEN, "Q4_0"), weight(16, HIDDEN, "float32")])
    assert names(fuse_quantize(recorder.nodes)) == ["rms_norm", "quantize", "linear", "linear"]


def test_a_layer_norm_stores_rows_that_other_nodes_read_twice(recording):
    recorder, ops, h = recording
    x = ops.layer_norm(h, HIDDEN, norm_weight(), None, 1e-5)
    ops.add(x, ops.linear(x, [weight(HIDDEN, HIDDEN, "bfloat16")]))
    nodes = fuse_quantize(recorder.nodes)
    assert names(nodes) == ["layer_norm", "linear", "add"]
    assert nodes[1].writes["out"] is x
    assert nodes[1].writes["rounded"] is nodes[2].reads["x"]


def test_queries_keys_and_values_are_stored_as_they_are_read(recording):
    h = recording[2]
    layer = KVLayer(0, 2, 16)
    found = {}
    for kv in ("bfloat16", "fp8_e4m3"):
        recorder = Recorder(KVFormat(kv))
        ops = Ops(recorder)
        h = ops.embedding(weight(131, HIDDEN), CTX.token_ids)
        q, k, v = ops.split(ops.linear(h, [weight(96, HIDDEN)]), [32, 32, 32])
        ops.write_kv(k, v, layer, CTX)
        ops.attention(q, layer, 0.25, CTX)
        found[kv] = round_qkv(recorder.nodes)
        verify(found[kv])
    nodes = found["bfloat16"]
    assert names(nodes) == ["linear", "write_kv", "attention"]
    out = nodes[1].writes["out"]
    assert out.kind == Kind.bf16
    assert {node.reads[name].buffer for node in nodes[2:] for name in node.reads} == {out.buffer}
    assert [nodes[3].reads["q"].start, nodes[2].reads["k"].start] == [0, 32]
    # Rounding to bf16 first would change the codes.
    assert names(found["fp8_e4m3"]) == ["linear", "write_kv", "quantize", "attention"]


def test_quantize_is_not_fused_where_a_tile_cannot_store_it(recording):
    """One scale per row needs the whole row; a linear layer's tile has some columns."""
    recorder, ops, h = recording
    ops.linear(ops.linear(h, [weight(64, HIDDEN)]), [weight(16, 64, "w8a8")])
    ops.linear(ops.linear(h, [weight(64, HIDDEN)]), [weight(16, 64, "Q8_0")])
    assert names(fuse_quantize(recorder.nodes)) == [
        *("linear", "quantize", "linear", "linear", "linear")
    ]


class Chain:
    """A model without attention that has every pair that is fused, and some that are not."""

    vocab_size = 131
    kv_layers = ()

    def __init__(self, dtype: str, other: str) -> None:
        self.embedding = weight(131, HIDDEN, "bfloat16")
        self.gate_up = weight(192, HIDDEN, dtype, 1)
        self.down = weight(HIDDEN, 96, dtype, 2)
        self.parts = [weight(32, HIDDEN, dtype, 3), weight(32, HIDDEN, other, 4)]
        self.bias = np.random.default_rng(5).standard_normal(HIDDEN).astype(np.float32)
        self.through = [weight(96, HIDDEN, other, 6), weight(HIDDEN, 96, dtype, 7)]
        self.plain = [weight(96, HIDDEN, other, 9), weight(HIDDEN, 96, dtype, 10)]
        self.head = weight(131, HIDDEN, other, 8)

    def embed(self, ops, ctx):
        return ops.embedding(self.embedding, ctx.token_ids)

    def forward(self, ops, h, ctx):
        for i in range(2):
            x = ops.rms_norm(h, norm_weight(i), 1e-5)
            x = ops.silu_and_mul(ops.linear(x, [self.gate_up]), interleaved=True)
            h = ops.add(h, ops.linear(x, [self.down], self.bias))
            x = ops.linear(ops.rms_norm(h, norm_weight(i + 2), 1e-5), self.parts, self.bias)
            h = ops.add(h, x)
            x = ops.linear(ops.rms_norm(h, norm_weight(i + 4), 1e-5), [self.through[0]])
            x = ops.silu_and_mul(ops.linear(ops.linear(x, [self.through[1]]), [self.gate_up]))
            h = ops.add(h, ops.linear(x, [self.down]))
            h = ops.layer_norm(h, HIDDEN, norm_weight(i + 6), self.bias, 1e-5)
            x = ops.elementwise(ops.linear(h, [self.plain[0]]), "gelu")
            h = ops.add(h, ops.linear(x, [self.plain[1]]))
        return h

    def logits(self, ops, h, ctx):
        x = ops.rms_norm(ops.select_rows(h, ctx.logit_index), norm_weight(9), 1e-5)
        return ops.linear(x, [self.head])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "Q4_0", "Q4_1", "Q8_0", "w8a8"])
@pytest.mark.parametrize("other", ["float32", "bfloat16", "Q8_0"])
def test_fusing_changes_no_bit(dtype, other):
    ids = np.random.default_rng(0).integers(0, 131, 50)
    logits, ops = [], []
    for eager in (False, True):
        backend = CpuBackend("f32", threads=2, eager=eager)
        executable = backend.build(Chain(dtype, other), LIMITS)
        ops.append([node.op for node in executable.nodes])
        driver = Driver(executable)
        driver.put(0, ids)
        logits.append(np.concatenate([driver.step({0: 49}), driver.step({0: 1})]))
    assert len(ops[0]) < len(ops[1])
    assert "add" in ops[1]
    assert "add" not in ops[0]
    assert np.isfinite(logits[0]).all()
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "Q4_1", "w8a8"])
@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: f.__name__)
def test_each_fusion_alone_changes_no_bit(dtype, fusion):
    ids = np.random.default_rng(0).integers(0, 131, 20)
    logits = []
    for passes in ((), (fusion,)):
        backend = CpuBackend("f32", threads=1, passes=passes)
        executable = backend.build(Chain(dtype, "bfloat16"), LIMITS)
        driver = Driver(executable)
        driver.put(0, ids)
        logits.append(driver.step({0: 20}))
    assert np.array_equal(logits[0], logits[1])


def test_passes_do_not_change_their_input(recording):
    recorder, ops, h = recording
    ops.add(h, ops.linear(ops.rms_norm(h, norm_weight(), 1e-5), [weight(HIDDEN, HIDDEN, "Q4_0")]))
    before = [(node.op, dict(node.ints)) for node in recorder.nodes]
    assert len(apply(recorder.nodes, FUSIONS)) < len(before)
    assert [(node.op, dict(node.ints)) for node in recorder.nodes] == before
