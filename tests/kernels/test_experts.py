"""Routing and experts: native against the definition, and equal bits however tokens are batched."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from galley.kernels.cpu import CpuBackend
from galley.kernels.ops import Ops
from galley.kernels.ops.experts import Activation, ExpertWeights
from galley.kernels.ops.route import Routing, Score
from galley.kernels.program import Dim, PackedExperts
from galley.kernels.reference import ReferenceOps
from galley.kernels.weights import PackedWeight, WeightMemory, pack
from galley.quant import interleave_rows, read_weight
from tests.kernels.test_linear import FORMATS, random_weight
from tests.models.checkpoints import quantized
from tests.models.driver import LIMITS, Driver

VOCAB, HIDDEN, INTER, EXPERTS = 131, 256, 256, 6
IDS = np.random.default_rng(1).integers(0, VOCAB, 75)
ROUTING = Routing(EXPERTS, 2, renormalise=True)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@dataclass
class Block:
    """A model of one layer, an expert block on an embedding (`backend.Model`)."""

    embedding: object
    router: object
    routing: Routing
    experts: ExpertWeights
    choice_bias: object = None

    vocab_size = HIDDEN
    kv_layers = ()

    def embed(self, ops, ctx):
        return ops.embedding(self.embedding, ctx.token_ids)

    def forward(self, ops, hidden, ctx):
        logits = ops.linear(hidden, [self.router])
        chosen = ops.route(logits, self.routing, self.choice_bias)
        return ops.experts(hidden, chosen, self.experts)

    def logits(self, ops, hidden, ctx):
        return ops.linear(ops.select_rows(hidden, ctx.logit_index), [self.head])

    @property
    def head(self):
        return pack(read_weight(quantized("w", np.eye(HIDDEN, dtype=np.float32), "float32")), "f32")


def dense(values: np.ndarray):
    return read_weight(quantized("w", values, "float32"))


def native_block(gate, up, down, routing=ROUTING, interleave=True, **others) -> Block:
    """Of one `QuantizedWeight` per expert each."""
    backend = CpuBackend("f32")
    if interleave:
        gate, up = [interleave_rows(g, u, 16) for g, u in zip(gate, up, strict=True)], None
    handles = ExpertWeights(
        [backend.weight(w) for w in gate],
        None if up is None else [backend.weight(w) for w in up],
        [backend.weight(w) for w in down],
        **others,
    )
    embedding = backend.weight(dense(numbers(VOCAB, HIDDEN, seed=7)))
    router = backend.weight(dense(numbers(EXPERTS, HIDDEN, seed=8, scale=0.15)))
    return Block(embedding, router, routing, handles)


def output(block: Block, chunks: list[int], threads: int = 2) -> np.ndarray:
    executable = CpuBackend("f32", threads).build(block, LIMITS, outputs=["hidden"])
    driver = Driver(executable)
    driver.put(3, IDS)
    rows = []
    for n in chunks:
        driver.step({3: n})
        rows.append(executable.outputs["hidden"].copy())
    return np.concatenate(rows)


def expected(gate, up, down, routing=ROUTING, choice_bias=None, **others) -> np.ndarray:
    """The ops' definitions, in float32."""

    def tensors(weights):
        return [torch.from_numpy(w.to_float32()) for w in weights]

    ops = Ops(ReferenceOps())
    x = torch.from_numpy(numbers(VOCAB, HIDDEN, seed=7)[IDS])
    router = torch.from_numpy(numbers(EXPERTS, HIDDEN, seed=8, scale=0.15))
    chosen = ops.route(x @ router.T, routing, choice_bias)
    weights = ExpertWeights(tensors(gate), up and tensors(up), tensors(down), **others)
    return ops.experts(x, chosen, weights).numpy()


def random_experts(name: str = "f32"):
    def matrix(n, k, seed):
        if name == "f32":
            return dense(numbers(n, k, seed=seed, scale=k**-0.5))
        return random_weight(name, n, k, seed)

    gate = [matrix(INTER, HIDDEN, 10 + e) for e in range(EXPERTS)]
    up = [matrix(INTER, HIDDEN, 30 + e) for e in range(EXPERTS)]
    return gate, up, [matrix(HIDDEN, INTER, 50 + e) for e in range(EXPERTS)]


ROUTINGS = {
    "softmax": Routing(EXPERTS, 3),
    "softmax, renormalised": Routing(EXPERTS, 2, renormalise=True),
    "softmax of the chosen": Routing(EXPERTS, 3, Score.softmax_of_chosen),
    "sigmoid, scaled": Routing(EXPERTS, 2, Score.sigmoid, renormalise=True, scale=2.5),
    "softmax of near ones": Routing(EXPERTS, 3, Score.softmax_of_near, near=0.6),
    "best groups": Routing(EXPERTS, 3, groups=3, top_groups=2, scale=0.5),
    "best groups by two": Routing(
        EXPERTS, 2, Score.sigmoid, renormalise=True, groups=2, top_groups=1, group_top=2
    ),
    "all experts": Routing(EXPERTS, EXPERTS),
}


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("name", list(ROUTINGS))
def test_routing(name):
    weights = random_experts()
    routing = ROUTINGS[name]
    close(output(native_block(*weights, routing), [75]), expected(*weights, routing))


def test_a_bias_changes_the_choice_and_no_weight():
    weights, bias = random_experts(), numbers(EXPERTS, seed=5)
    routing = ROUTINGS["sigmoid, scaled"]
    block = replace(native_block(*weights, routing), choice_bias=bias)
    want = expected(*weights, routing, torch.from_numpy(bias))
    close(output(block, [75]), want)
    assert np.abs(want - expected(*weights, routing)).max() > 0.1


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize(
    "activation", [Activation.silu, Activation.gelu, Activation.clamped_swiglu]
)
@pytest.mark.parametrize("bias", [False, True])
def test_activations_and_biases(activation, interleave, bias):
    weights = random_experts()
    others = {"activation": activation, "alpha": 1.7, "limit": 0.8}
    gate, up, down = (
        numbers(EXPERTS, INTER),
        numbers(EXPERTS, INTER, seed=1),
        numbers(EXPERTS, HIDDEN, seed=2),
    )
    theirs, ours = {}, {}
    if bias:
        names = ("gate_bias", "up_bias", "down_bias")
        theirs = dict(zip(names, map(torch.from_numpy, (gate, up, down)), strict=True))
        ours = dict(zip(names, (gate, up, down), strict=True))
        if interleave:
            runs = np.stack([gate.reshape(EXPERTS, -1, 16), up.reshape(EXPERTS, -1, 16)], 2)
            ours = {"gate_bias": runs.reshape(EXPERTS, -1), "down_bias": down}
    block = native_block(*weights, interleave=interleave, **others, **ours)
    close(output(block, [75]), expected(*weights, **others, **theirs))


@pytest.mark.parametrize("bias", [False, True])
def test_experts_without_gates(bias):
    _, up, down = random_experts()
    ours = {}
    if bias:
        ours = {"gate_bias": numbers(EXPERTS, INTER), "down_bias": numbers(EXPERTS, HIDDEN, seed=2)}
    theirs = {name: torch.from_numpy(values) for name, values in ours.items()}
    relu2 = {"activation": Activation.relu2}
    block = native_block(up, None, down, interleave=False, **relu2, **ours)
    close(output(block, [75]), expected(up, None, down, **relu2, **theirs))


def test_weights_of_inputs():
    weights = random_experts()
    routing = Routing(EXPERTS, 1, Score.sigmoid)
    want = expected(*weights, routing, weigh_inputs=True)
    close(output(native_block(*weights, routing, weigh_inputs=True), [75]), want)
    assert np.abs(want - expected(*weights, routing)).max() > 0.1


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_and_no_bit_depends_on_the_batch(name):
    """Against dequantised experts; the kernel rounds its input, as `linear` does."""
    if FORMATS[name] is None:
        gate, up, down = random_experts()
    else:
        gate, up, down = random_experts(name)
    block = native_block(gate, up, down)
    whole = output(block, [75])
    want = expected(gate, up, down)
    assert np.median(np.abs(whole - want)) <= 0.02 * np.abs(want).max()
    for chunks, threads in (([13, 1, 30, 16, 15], 1), ([40] + [1] * 35, 2)):
        assert np.array_equal(output(block, chunks, threads), whole)


def test_dense_and_quantised_experts_in_one_layer_are_refused():
    weights = random_experts("Q4_0")
    other = random_experts()
    mixed = [[*w[:3], *o[3:]] for w, o in zip(weights, other, strict=True)]
    with pytest.raises(ValueError, match="rows"):
        output(native_block(*mixed), [75])


def test_odd_sizes():
    gate = [dense(numbers(40, HIDDEN, seed=e, scale=0.1)) for e in range(EXPERTS)]
    up = [dense(numbers(40, HIDDEN, seed=20 + e, scale=0.1)) for e in range(EXPERTS)]
    down = [dense(numbers(HIDDEN, 40, seed=40 + e, scale=0.1)) for e in range(EXPERTS)]
    block = native_block(gate, up, down, interleave=False)
    close(output(block, [75]), expected(gate, up, down))


def test_experts_that_no_token_chose_are_not_read():
    """Their weights are in memory that cannot be read: a read ends the process."""
    gate, up, down = random_experts()
    x = numbers(VOCAB, HIDDEN, seed=7)[IDS[:1]]
    router = numbers(EXPERTS, HIDDEN, seed=8, scale=0.15)
    chosen = np.argsort(-(x @ router.T)[0])[: ROUTING.top_k]
    block = native_block(gate, up, down)
    for weights in (block.experts.gate, block.experts.down):
        for e in set(range(EXPERTS)) - set(chosen.tolist()):
            size = weights[e].data.nbytes
            closed = mmap.mmap(-1, size, prot=0)
            weights[e] = PackedWeight(
                weights[e].format, weights[e].shape, np.frombuffer(closed, np.uint8)
            )
    child = os.fork()
    if child == 0:
        rows = output(block, [1], threads=1)
        os._exit(0 if np.isfinite(rows).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_shape_of_packed_experts():
    experts = native_block(*random_experts()).experts
    packed = PackedExperts(tuple(experts.gate), EXPERTS, 2)
    assert packed.shape == (EXPERTS, 2 * INTER, HIDDEN)
    assert packed.table.shape == (EXPERTS, 9)
    assert str(Dim("tokens", 2)) == "2 tokens"


def test_small_weights_share_memory_and_do_not_overlap():
    memory = WeightMemory()
    first, second = memory.allocate(100), memory.allocate(200)
    assert second.ctypes.data - first.ctypes.data == 128
    first[:], second[:] = 1, 2
    assert (first == 1).all()
    assert first.ctypes.data % 64 == 0
    assert memory.allocate(8 << 20).nbytes == 8 << 20
    assert memory.allocate(64).ctypes.data - second.ctypes.data == 256
