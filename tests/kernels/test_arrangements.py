"""Every arrangement of attention runs natively, equals the reference, and is fused without a change
of any bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from galley.kernels.cpu import CpuBackend
from galley.kernels.passes import FUSIONS
from galley.kernels.reference import ReferenceBackend
from tests.kernels.arrangements import (
    ARRANGEMENTS,
    DIM,
    FUSED,
    HEADS,
    KV_HEADS,
    VOCAB,
    Arrangement,
    arrays,
)
from tests.kernels.native_harness import ISAS, use_isa
from tests.models.driver import LIMITS, Driver, solo_logits

IDS = np.random.default_rng(0).integers(0, VOCAB, 70)
CAUSAL = [name for name in ARRANGEMENTS if name != "bidirectional"]


def native(name: str, dense: str = "f32", threads: int = 1, **options):
    backend = CpuBackend(dense, threads, **options)
    return backend.build(Arrangement(name, backend), LIMITS)


def reference_logits(name: str, ids: np.ndarray) -> np.ndarray:
    backend = ReferenceBackend()
    return solo_logits(backend.build(Arrangement(name, backend), LIMITS), ids, [len(ids)])


@pytest.mark.parametrize("name", list(ARRANGEMENTS))
def test_native_equals_the_reference(name):
    want = reference_logits(name, IDS)
    got = solo_logits(native(name), IDS, [70])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    rounded = solo_logits(native(name, "bf16"), IDS, [70])
    assert np.abs(rounded - want).mean() < 0.02 * np.abs(want).mean()


@pytest.mark.parametrize("dense", ["f32", "bf16"])
@pytest.mark.parametrize("name", list(ARRANGEMENTS))
def test_no_fusion_changes_a_bit(name, dense):
    """None, each alone, all together, and op by op."""
    plain = native(name, dense, passes=())
    want = solo_logits(plain, IDS, [70])
    assert not any(node.op == "rope_kv" for node in plain.nodes)
    for fusion in FUSIONS:
        assert np.array_equal(solo_logits(native(name, dense, passes=(fusion,)), IDS, [70]), want)
    fused = native(name, dense, threads=2)
    assert np.array_equal(solo_logits(fused, IDS, [70]), want)
    assert np.array_equal(solo_logits(native(name, dense, eager=True), IDS, [70]), want)
    assert sum(node.op == "rope_kv" for node in fused.nodes) == FUSED.get(name, 0)


@pytest.mark.parametrize("dense", ["f32", "bf16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_no_bit_depends_on_chunks_or_batch(name, dense):
    whole = solo_logits(native(name, dense), IDS, [70])
    executable = native(name, dense, threads=2)
    assert np.array_equal(solo_logits(executable, IDS, [13, 1, 30, 16, 10]), whole)
    driver = Driver(executable, block_size=32, seed=1)
    driver.put(5, IDS)
    driver.put(0, IDS[:40])
    first, second = driver.step({5: 20, 0: 39}), driver.step({0: 1, 5: 50})
    assert np.array_equal(np.concatenate([first[:20], second[1:]]), whole)
    assert np.array_equal(np.concatenate([first[20:], second[:1]]), whole[:40])


def torch_logits(ids: np.ndarray) -> np.ndarray:
    """The bidirectional model by hand, in float64."""
    w = {key: torch.from_numpy(array).double() for key, array in arrays().items()}
    angles = torch.outer(
        torch.arange(len(ids)).double(), 100.0 ** (-torch.arange(12) / 12).double()
    )
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        rotated = torch.complex(x[..., :12].contiguous(), x[..., 12:24].contiguous()) * rotation
        return torch.cat([rotated.real, rotated.imag, x[..., 24:]], dim=-1)

    h = w["embed"][torch.from_numpy(ids)]
    for _ in range(2):
        x = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-5)
        heads = (x @ w["qkv"].T).unflatten(-1, (-1, DIM))
        q, k, v = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        q, k, v = (t.transpose(0, 1) for t in (rotate(q), rotate(k), v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        h = h + out.transpose(0, 1).flatten(1) @ w["out"].T
    return (h @ w["head"].T).numpy()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bidirectional_model_equals_torch(isa, threads):
    want = torch_logits(IDS)
    with use_isa(isa):
        for dense, tolerance in (("f32", 1e-5), ("bf16", 0.02)):
            got = solo_logits(native("bidirectional", dense, threads), IDS, [70])
            assert np.abs(got - want).mean() < tolerance * np.abs(want).mean()


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_bidirectional_row_sees_no_other(name):
    """Sequences of one step do not meet, though each is seen whole."""
    backend = CpuBackend("f32", threads=2) if name == "cpu" else ReferenceBackend()
    executable = backend.build(Arrangement("bidirectional", backend), LIMITS)
    driver = Driver(executable)
    parts = [IDS[:33], IDS[33:35], IDS[35:]]
    for slot, ids in enumerate(parts):
        driver.put(slot, ids)
    together = driver.step({slot: len(ids) for slot, ids in enumerate(parts)})
    alone = np.concatenate([solo_logits(executable, ids, [len(ids)]) for ids in parts])
    if name == "cpu":
        assert np.array_equal(together, alone)
    else:
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_layers_of_one_model_may_differ_in_causality():
    """All else being equal, each of the two layers has its own plan."""
    logits = []
    for make in (ReferenceBackend, lambda: CpuBackend("f32", threads=2)):
        backend = make()
        model = Arrangement("plain", backend)
        model.kv_layers[1] = replace(model.kv_layers[1], causal=False)
        logits.append(solo_logits(backend.build(model, LIMITS), IDS, [70]))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits[0], reference_logits("plain", IDS), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_bidirectional_sequence_in_two_steps_is_refused(name):
    backend = CpuBackend("f32", threads=1) if name == "cpu" else ReferenceBackend()
    executable = backend.build(Arrangement("bidirectional", backend), LIMITS)
    with pytest.raises(
        ValueError, match="attention: without causality a sequence is computed in one step"
    ):
        solo_logits(executable, IDS, [40, 30])


def test_a_window_of_a_bidirectional_layer():
    logits = []
    for make in (ReferenceBackend, lambda: CpuBackend("f32", threads=2)):
        backend = make()
        model = Arrangement("bidirectional", backend)
        model.kv_layers[1] = replace(model.kv_layers[1], window=8)
        logits.append(solo_logits(backend.build(model, LIMITS), IDS, [70]))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits[0], reference_logits("bidirectional", IDS), rtol=0.01, atol=0.01)
