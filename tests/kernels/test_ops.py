"""Argument checks of the ops, and their definitions against loops in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from galley.batch import GroupSpec, NewRow, RequestTable, StepPlan
from galley.kernels.backend import kv_layout
from galley.kernels.ops import KVLayer, Ops, RotaryTable
from galley.kernels.reference import KVCache, ReferenceContext, ReferenceOps, step_context
from galley.kv.format import KVFormat
from galley.request import SamplingParams

OPS = Ops(ReferenceOps())
LAYER = KVLayer(index=0, kv_heads=2, head_dim=4)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def context(computed: list[int], new: list[int], block_size: int = 16) -> ReferenceContext:
    """Rows in slots n - 1 .. 0, blocks assigned in reverse."""
    n = len(new)
    table = RequestTable(n, 64, [GroupSpec("full", block_size, 1)])
    blocks = 64 // block_size
    table.block_tables[0][:] = np.arange(n * blocks, 0, -1).reshape(n, blocks)
    slots = np.arange(n - 1, -1, -1, dtype=np.int32)
    for slot, done, count in zip(slots, computed, new, strict=True):
        ids = np.arange(done + count, dtype=np.int32)
        table.set_row(NewRow(int(slot), 0, ids, done + count, done, SamplingParams(), []))
    counts = np.array(new, np.int32)
    plan = StepPlan(1, slots, counts, np.minimum(counts, 1), np.ones(n, np.uint8))
    layout = kv_layout([LAYER], KVFormat("float32"), block_size)
    cache = KVCache.zeros([LAYER], 1 + n * blocks, layout, torch.float32, KVFormat("float32"))
    return step_context(plan, table, cache)


CTX = context([0], [3])

WRONG = {
    "embedding": lambda: OPS.embedding(values(8), CTX.token_ids),
    "linear, inputs": lambda: OPS.linear(values(3, 5), [values(2, 4)]),
    "linear, second weight": lambda: OPS.linear(values(3, 4), [values(2, 4), values(2, 5)]),
    "linear, bias": lambda: OPS.linear(values(3, 4), [values(2, 4), values(1, 4)], values(2)),
    "linear, none": lambda: OPS.linear(values(3, 4), []),
    "rms_norm": lambda: OPS.rms_norm(values(3, 4), values(5), 1e-6),
    "head_norm": lambda: OPS.head_norm(values(3, 10), values(4), 1e-6),
    "layer_norm, heads": lambda: OPS.layer_norm(values(3, 10), 4, None, None, 1e-6),
    "layer_norm, bias": lambda: OPS.layer_norm(values(3, 8), 4, values(4), values(8), 1e-6),
    "elementwise, name": lambda: OPS.elementwise(values(3, 4), "sine"),
    "elementwise, parameters": lambda: OPS.elementwise(values(3, 4), "xielu"),
    "add": lambda: OPS.add(values(3, 4), values(3, 5)),
    "split": lambda: OPS.split(values(3, 4), [2, 1]),
    "silu_and_mul, odd": lambda: OPS.silu_and_mul(values(3, 5)),
    "silu_and_mul, runs": lambda: OPS.silu_and_mul(values(3, 40), interleaved=True),
    "rope, heads": lambda: OPS.rope(values(3, 10), CTX.positions, RotaryTable(values(64, 4)), 4),
    "rope, table": lambda: OPS.rope(values(3, 8), CTX.positions, RotaryTable(values(64, 6)), 4),
    "write_kv": lambda: OPS.write_kv(values(3, 8), values(3, 4), LAYER, CTX),
    "scale": lambda: OPS.scale(values(3, 4), values(3)),
    "soft_cap": lambda: OPS.soft_cap(values(3, 4), 0.0),
    "attention, sinks": lambda: OPS.attention(values(3, 16), LAYER, 1.0, CTX, sinks=values(2)),
    "attention, heads": lambda: OPS.attention(values(3, 12), LAYER, 1.0, CTX),
    "attention, biases": lambda: OPS.attention(values(3, 16), LAYER, 1.0, CTX, biases=values(4, 4)),
    "attention, heads of biases": lambda: OPS.attention(
        values(3, 16), LAYER, 1.0, CTX, biases=values(5, 2)
    ),
    "attention, slopes": lambda: OPS.attention(values(3, 16), LAYER, 1.0, CTX, values(2)),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_shapes_are_refused(name):
    with pytest.raises(ValueError, match=name.split(",")[0]):
        WRONG[name]()


def test_all_reduce_uses_the_group():
    class Doubling:
        rank, size = 0, 2

        def all_reduce(self, x):
            return x + x

    x = values(2, 3)
    assert OPS.all_reduce(x) is x
    assert torch.equal(Ops(ReferenceOps(), Doubling()).all_reduce(x), 2 * x)


def test_embedding_and_select_rows():
    weight, ids = values(9, 4), torch.tensor([8, 0, 8])
    assert torch.equal(OPS.embedding(weight, ids), weight[[8, 0, 8]])
    positions = torch.tensor([[2, 0]])
    assert torch.equal(OPS.embedding(weight, positions, first=3), weight[[5, 3]])
    assert torch.equal(OPS.select_rows(weight, torch.tensor([2, 5])), weight[[2, 5]])


def test_linear_puts_outputs_side_by_side():
    x, a, b, bias = values(3, 4), values(2, 4, seed=1), values(5, 4, seed=2), values(7)
    want = np.concatenate([x @ a.T, x @ b.T], axis=1) + bias.numpy()
    np.testing.assert_allclose(OPS.linear(x, [a, b], bias), want, rtol=1e-5, atol=1e-6)


def test_rms_norms():
    x, weight = values(3, 8), values(8, seed=1)
    want = []
    for row in x.tolist():
        root = math.sqrt(sum(v * v for v in row) / 8 + 0.1)
        want.append([v / root * w for v, w in zip(row, weight.tolist(), strict=True)])
    np.testing.assert_allclose(OPS.rms_norm(x, weight, 0.1), want, rtol=1e-5)
    half = weight[:4]
    per_head = torch.cat([OPS.rms_norm(x[:, :4], half, 0.1), OPS.rms_norm(x[:, 4:], half, 0.1)], 1)
    assert torch.equal(OPS.head_norm(x, half, 0.1), per_head)


def test_layer_norm():
    x, weight, bias = values(3, 8), values(8, seed=1), values(8, seed=2)
    heads = x.double().view(3, 2, 4)
    centred = heads - heads.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()).view(3, 8)
    got = OPS.layer_norm(x, 4, weight, bias, 0.1)
    np.testing.assert_allclose(got, normed * weight + bias, rtol=1e-5, atol=1e-6)
    shared = OPS.layer_norm(x, 4, weight[:4], None, 0.1)
    np.testing.assert_allclose(shared, normed * weight[:4].repeat(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_silu_and_mul(interleaved):
    gate, up = values(3, 32), values(3, 32, seed=1)
    runs = [gate, up]
    if interleaved:
        runs = [part[:, i : i + 16] for i in (0, 16) for part in (gate, up)]
    want = gate.double() / (1 + torch.exp(-gate.double())) * up.double()
    got = OPS.silu_and_mul(torch.cat(runs, dim=1), interleaved)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rot_dim", [8, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_rotates_pairs(rot_dim, interleaved):
    head_dim, half = 8, rot_dim // 2
    angles = np.random.default_rng(3).uniform(0, 6, (64, half))
    table = RotaryTable(
        torch.from_numpy(np.hstack([np.cos(angles), np.sin(angles)])).float(), interleaved
    )
    ctx = context([5, 0], [2, 3])
    x = values(5, 2 * head_dim)
    rotated = OPS.rope(x, ctx.positions, table, head_dim)
    assert ctx.positions.tolist() == [[5, 6, 0, 1, 2]]
    for token, position in enumerate([5, 6, 0, 1, 2]):
        for start in (0, head_dim):
            head = x[token, start : start + head_dim].numpy().astype(np.float64)
            want = head.copy()
            for i, angle in enumerate(angles[position]):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                pair = complex(head[a], head[b]) * complex(np.cos(angle), np.sin(angle))
                want[a], want[b] = pair.real, pair.imag
            got = rotated[token, start : start + head_dim]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "causal", "slopes"),
    [
        (0, True, None),
        (3, True, None),
        (0, False, None),
        (2, False, None),
        (0, True, torch.tensor([0.5, 0.1, 0.01, 1.0])),
        (0, False, torch.tensor([0.5, 0.1, 0.01, 1.0])),
        (2, False, torch.tensor([0.5, 0.1, 0.01, 1.0])),
    ],
)
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("biases", [None, values(5, 4, seed=3)])
def test_attention_over_the_cache(window, causal, slopes, block_size, biases):
    """Two rows, one with earlier tokens; every query by hand over the positions it sees."""
    layer = KVLayer(0, kv_heads=2, head_dim=4, window=window, causal=causal)
    past, new = [20 if causal else 0, 0], [3, 5]
    tokens = [p + n for p, n in zip(past, new, strict=True)]
    k = [values(n, 8, seed=i) for i, n in enumerate(tokens)]
    v = [values(n, 8, seed=9 + i) for i, n in enumerate(tokens)]
    q = values(sum(new), 16, seed=5)
    ctx = context(past, new, block_size)
    before = context([0, 0], past, block_size)
    before.cache = ctx.cache
    OPS.write_kv(k[0][: past[0]], v[0][: past[0]], layer, before)
    k_new, v_new = (torch.cat([x[0][past[0] :], x[1]]) for x in (k, v))
    OPS.write_kv(k_new, v_new, layer, ctx)
    got = OPS.attention(q, layer, 0.5, ctx, slopes, biases=biases)
    token = 0
    for row in range(2):
        for position in range(past[row], tokens[row]):
            first = max(0, position - window + 1) if window else 0
            last = position + 1 if causal else tokens[row]
            if window and not causal:
                last = min(position + window, tokens[row])
            for head in range(4):
                of = slice(head // 2 * 4, head // 2 * 4 + 4)
                query = q[token, head * 4 : head * 4 + 4].double()
                scores = 0.5 * k[row][first:last, of].double() @ query
                if slopes is not None:
                    scores -= slopes[head] * (position - torch.arange(first, last)).abs()
                if biases is not None:
                    distance = (torch.arange(first, last) - position).clamp(-2, 2)
                    scores += biases[distance + 2, head]
                want = torch.softmax(scores, 0) @ v[row][first:last, of].double()
                np.testing.assert_allclose(
                    got[token, head * 4 : head * 4 + 4], want, rtol=1e-4, atol=1e-5
                )
            token += 1


def test_the_null_block_stays_zero():
    ctx = context([0, 7], [20, 9])
    OPS.write_kv(values(29, 8), values(29, 8), LAYER, ctx)
    assert not ctx.cache.k[0][0].any()
    assert not ctx.cache.v[0][0].any()
