"""Recording of a model's forward pass."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels.cpu import CpuBackend
from galley.kernels.ops import KVLayer, Ops, RotaryTable
from galley.kernels.passes.rope_kv import fuse_rope_kv
from galley.kernels.program import LOGITS, TOKENS, Kind, describe
from galley.kernels.recorder import Recorder, RecordingContext, record
from galley.kv.format import KVFormat
from tests.kernels.test_passes import weight
from tests.models.checkpoints import CASES, StateDict, make
from tests.models.driver import load

CTX = RecordingContext()
LAYER = KVLayer(0, kv_heads=1, head_dim=16)


@pytest.fixture
def recording():
    recorder = Recorder(KVFormat("bfloat16"))
    return recorder, Ops(recorder)


def test_shapes_are_checked_while_recording(recording):
    _, ops = recording
    x = ops.embedding(weight(9, 64), CTX.token_ids)
    assert x.shape == ("tokens", 64)
    assert ops.select_rows(x, CTX.logit_index).shape == ("logits", 64)
    with pytest.raises(ValueError, match="linear: 64 columns where 32"):
        ops.linear(x, [weight(8, 32)])


def test_rows_are_quantised_once_per_kind(recording):
    recorder, ops = recording
    x = ops.embedding(weight(9, 64), CTX.token_ids)
    ops.linear(x, [weight(16, 64, "Q4_0"), weight(16, 64, "bfloat16"), weight(16, 64, "Q8_0")])
    ops.linear(x, [weight(16, 64, "Q4_0")])
    kinds = [n.writes["out"].kind for n in recorder.nodes if n.op == "quantize"]
    assert kinds == [Kind.q8, Kind.bf16, Kind.q16]


def test_the_flag_chooses_the_kind_of_quantised_activations():
    for quantized, kind in (("int8", Kind.q8), ("int16", Kind.q16)):
        recorder = Recorder(KVFormat("bfloat16"), quantized)
        ops = Ops(recorder)
        x = ops.embedding(weight(9, 64), CTX.token_ids)
        ops.linear(x, [weight(16, 64, "Q4_0"), weight(16, 64, "Q8_0"), weight(16, 64, "w8a8")])
        kinds = [n.reads["x"].kind for n in recorder.nodes if n.op == "linear"]
        assert kinds == [kind, kind, Kind.q8_row]


def test_a_sum_is_quantised_again(recording):
    """An add writes into its first argument's memory: rows made of it before are stale."""
    recorder, ops = recording
    x = ops.embedding(weight(9, 64), CTX.token_ids)
    y = ops.linear(x, [weight(64, 64, "Q4_0")])
    ops.linear(ops.add(x, y), [weight(64, 64, "Q4_0")])
    assert [n.op for n in recorder.nodes] == [
        *("embedding", "quantize", "linear", "add", "quantize", "linear")
    ]


def test_an_overwritten_value_is_refused(recording):
    _, ops = recording
    x = ops.embedding(weight(9, 64), CTX.token_ids)
    ops.add(x, ops.linear(x, [weight(64, 64)]))
    with pytest.raises(ValueError, match="overwritten"):
        ops.linear(x, [weight(8, 64)])


def test_weights_of_several_formats_share_one_buffer(recording):
    recorder, ops = recording
    bias = np.arange(48, dtype=np.float32)
    x = ops.embedding(weight(9, 64), CTX.token_ids)
    out = ops.linear(x, [weight(16, 64, "Q4_0"), weight(32, 64, "Q8_0")], bias)
    first, second = (n for n in recorder.nodes if n.op == "linear")
    assert first.writes["out"].buffer is second.writes["out"].buffer is out.buffer
    assert [(n.writes["out"].start, n.writes["out"].columns) for n in (first, second)] == [
        (0, 16),
        (16, 32),
    ]
    assert np.array_equal(second.constants["bias"], bias[16:])


def attended(ops: Ops, normed: bool = False):
    """Attention of two heads over one KV head."""
    table = RotaryTable(np.zeros((8, 16), np.float32))
    qkv = ops.linear(ops.embedding(weight(9, 64), CTX.token_ids), [weight(64, 64)])
    q, k, v = ops.split(qkv, [32, 16, 16])
    if normed:
        q = ops.head_norm(q, np.ones(16, np.float32), 1e-5)
        k = ops.head_norm(k, np.full(16, 2, np.float32), 1e-5)
    q, k = (ops.rope(x, CTX.positions, table, 16) for x in (q, k))
    ops.write_kv(k, v, LAYER, CTX)
    return ops.attention(q, LAYER, 0.25, CTX)


@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_write_become_one(recording, normed):
    recorder, ops = recording
    attended(ops, normed)
    nodes = fuse_rope_kv(recorder.nodes)
    assert [n.op for n in nodes] == ["embedding", "linear", "rope_kv", "attention"]
    rope, attention = nodes[-2:]
    assert rope.writes["q_out"] is attention.reads["q"]
    assert rope.writes["q_out"].kind == Kind.bf16
    assert (rope.ints["heads"], rope.ints["kv_heads"], rope.layer) == (2, 1, LAYER)
    assert ("q_weight" in rope.constants) == normed
    if normed:
        assert rope.constants["k_weight"][0] == 2
        assert rope.floats == {"eps": 1e-5}


def test_rope_and_write_stay_apart_where_another_node_reads_the_keys(recording):
    recorder, ops = recording
    q, k, v = ops.split(ops.embedding(weight(9, 64), CTX.token_ids), [32, 16, 16])
    table = RotaryTable(np.zeros((8, 16), np.float32))
    q, k = (ops.rope(x, CTX.positions, table, 16) for x in (q, k))
    ops.write_kv(k, v, LAYER, CTX)
    ops.linear(k, [weight(16, 16)])
    assert "rope_kv" not in [n.op for n in fuse_rope_kv(recorder.nodes)]


def test_a_whole_model():
    model = load(StateDict(make(CASES["qwen3"])), CpuBackend("bf16", threads=1))
    nodes, outputs = record(model, KVFormat("bfloat16"))
    hidden, logits = outputs["hidden"], outputs["logits"]
    assert (hidden.buffer.rows, hidden.columns) == (TOKENS, 64)
    assert (logits.buffer.rows, logits.columns) == (LOGITS, 131)
    layer = ["rms_norm", "quantize", "linear", "rms_norm", "rms_norm", "rope", "rope"]
    layer += ["write_kv", "quantize", "attention", "quantize", "linear", "add"]
    layer += ["rms_norm", "quantize", "linear", "silu_and_mul", "quantize", "linear", "add"]
    end = ["select_rows", "rms_norm", "quantize", "linear"]
    assert [n.op for n in nodes] == ["embedding", *3 * layer, *end]


def test_a_program_is_printed_one_operation_a_line(recording):
    recorder, ops = recording
    attended(ops)
    lines = describe(fuse_rope_kv(recorder.nodes)).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == (
        ["1", "linear", "x=%0", "T×64", "f32,", "weight=[64×64", "f32]", "→", "%1", "T×64", "f32"]
    )
    assert lines[3].endswith(
        "kv=layer 0, heads=2, kv_heads=1, head_dim=16, kv_kind=1, causal=1  →  %3 T×32 f32"
    )
