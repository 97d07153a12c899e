"""Weights by name: joined, interleaved, cut for ranks, and no tensor unused."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.adapters import PANEL
from galley.kernels.ops import Ops, SingleRank
from galley.kernels.reference import ReferenceBackend, ReferenceOps
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Matrix, Part, Vector, fuse, fuse_runs
from galley.layers.weights import CheckpointWeights
from galley.loader.tensor import RawTensor
from tests.models.checkpoints import quantized

HIDDEN, INTERMEDIATE = 64, 96


class Arrays:
    """A checkpoint of float32 arrays, some of them quantised to a GGUF type."""

    model_info = ModelInfo("", {}, vocab_size=1, max_position=1, dtype="float32")

    def __init__(self, arrays: dict[str, np.ndarray], types: dict[str, str] | None = None):
        self.arrays, self.types = arrays, types or {}

    def names(self) -> list[str]:
        return list(self.arrays)

    def tensor(self, name: str) -> RawTensor:
        return quantized(name, self.arrays[name], self.types.get(name, "float32"))

    def values(self, name: str) -> np.ndarray:
        """The tensor's values after quantisation."""
        raw = self.tensor(name)
        if raw.dtype == "float32":
            return raw.data
        return quants.dequantize(raw.data, getattr(quants.GGMLQuantizationType, raw.dtype))


class Interleaving(ReferenceBackend):
    """The reference with gate and up interleaved, as native kernels read them."""

    interleave_gate_up = True


class Rank:
    """One rank of a group; its terms of a sum are not summed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, x):
        return x


def mlp_arrays(bias: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    arrays = {f"{n}.weight": rng.standard_normal(s) * 0.2 for n, s in shapes.items()}
    if bias:
        arrays |= {f"{n}.bias": rng.standard_normal(s[0]) for n, s in shapes.items()}
    return {n: a.astype(np.float32) for n, a in arrays.items()}


def run_mlp(checkpoint: Arrays, backend, group=None, bias: bool = False) -> np.ndarray:
    source = CheckpointWeights(checkpoint, backend, group)
    up, down = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    spec = MLPSpec(
        Part("mlp.gate_proj", up), Part("mlp.up_proj", up), Part("mlp.down_proj", down), bias
    )
    mlp = spec.build(BuildContext(source, max_positions=1))
    source.finish()
    x = backend.constant(np.random.default_rng(1).standard_normal((5, HIDDEN)).astype(np.float32))
    return mlp(Ops(ReferenceOps(), source.group), x).numpy()


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", [ReferenceBackend(), Interleaving()])
@pytest.mark.parametrize(
    "types",
    [
        {},
        {"mlp.gate_proj.weight": "Q8_0", "mlp.up_proj.weight": "Q8_0"},
        {"mlp.gate_proj.weight": "Q4_0", "mlp.up_proj.weight": "Q8_0"},
    ],
    ids=["dense", "one format", "two formats"],
)
def test_gated_mlp(types, backend, bias):
    checkpoint = Arrays(mlp_arrays(bias), types)
    x = np.random.default_rng(1).standard_normal((5, HIDDEN)).astype(np.float32)

    def linear(x, name):
        b = checkpoint.arrays.get(f"mlp.{name}.bias", 0)
        return x @ checkpoint.values(f"mlp.{name}.weight").T + b

    want = linear(silu(linear(x, "gate_proj")) * linear(x, "up_proj"), "down_proj")
    np.testing.assert_allclose(run_mlp(checkpoint, backend, bias=bias), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", [ReferenceBackend(), Interleaving()])
def test_ranks_sum_to_the_whole(backend, bias):
    arrays = mlp_arrays(bias)
    ranks = [run_mlp(Arrays(arrays), backend, Rank(r, 3), bias) for r in range(3)]
    whole = run_mlp(Arrays(arrays), backend, SingleRank(), bias)
    np.testing.assert_allclose(sum(ranks), whole, rtol=1e-4, atol=1e-4)


def test_parts_of_one_format_become_one_weight():
    rng = np.random.default_rng(2)
    arrays = {f"{n}.weight": rng.standard_normal((32, 64)).astype(np.float32) for n in "abcd"}
    types = {"a.weight": "Q4_0", "b.weight": "Q4_0", "c.weight": "Q8_0"}
    source = CheckpointWeights(Arrays(arrays, types), ReferenceBackend())
    linear = Linear(source, Matrix(tuple(Part(n, (32, 64)) for n in "abcd")))
    assert [w.shape[0] for w in linear.weights] == [64, 32, 32]
    x = rng.standard_normal((3, 64)).astype(np.float32)
    y = linear(Ops(ReferenceOps()), ReferenceBackend().constant(x)).numpy()
    want = x @ np.concatenate([source._checkpoint.values(f"{n}.weight") for n in "abcd"]).T
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def run_linear(source: CheckpointWeights, linear: Linear, x: np.ndarray) -> np.ndarray:
    ops = Ops(ReferenceOps(), source.group)
    return linear(ops, ReferenceBackend().constant(x)).numpy()


#: A fused matrix as qkv_proj or gate_up_proj: 64 rows of one part and 32 of another.
FUSED = (Part("fused", (96, 64), (0, 64)), Part("fused", (96, 64), (64, 96)))


@pytest.mark.parametrize("types", [{}, {"fused.weight": "Q4_0"}], ids=["dense", "Q4_0"])
@pytest.mark.parametrize("order", [FUSED, FUSED[::-1]], ids=["as stored", "swapped"])
def test_rows_of_a_fused_tensor_are_parts(types, order):
    rng = np.random.default_rng(3)
    arrays = {"fused.weight": rng.standard_normal((96, 64)), "fused.bias": rng.standard_normal(96)}
    checkpoint = Arrays({n: a.astype(np.float32) for n, a in arrays.items()}, types)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    whole = x @ checkpoint.values("fused.weight").T + checkpoint.arrays["fused.bias"]
    rows = np.concatenate([np.arange(*part.rows) for part in order])

    source = CheckpointWeights(checkpoint, ReferenceBackend())
    y = run_linear(source, Linear(source, Matrix(order), bias=True), x)
    source.finish()
    np.testing.assert_allclose(y, whole[:, rows], rtol=1e-4, atol=1e-4)

    for rank in range(2):
        source = CheckpointWeights(checkpoint, ReferenceBackend(), Rank(rank, 2))
        y = run_linear(source, Linear(source, Matrix(order, "outputs"), bias=True), x)
        halves = [np.split(np.arange(*part.rows), 2)[rank] for part in order]
        np.testing.assert_allclose(y, whole[:, np.concatenate(halves)], rtol=1e-4, atol=1e-4)


#: Two heads of q (16 rows), k (8) and v (8) by turns.
BY_HEAD = tuple(
    fuse_runs(
        "fused", [Part(n, (rows, 64)) for n, rows in zip("qkv", (32, 16, 16), strict=True)], 2
    )
)


@pytest.mark.parametrize("types", [{}, {"fused.weight": "Q4_0"}], ids=["dense", "Q4_0"])
def test_parts_of_a_fused_tensor_that_come_in_turn(types):
    rng = np.random.default_rng(5)
    arrays = {"fused.weight": rng.standard_normal((64, 64)), "fused.bias": rng.standard_normal(64)}
    checkpoint = Arrays({n: a.astype(np.float32) for n, a in arrays.items()}, types)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    y = x @ checkpoint.values("fused.weight").T + checkpoint.arrays["fused.bias"]
    q, k, v = np.split(y.reshape(3, 2, 32), [16, 24], axis=-1)
    for rank in range(2):
        for size in (1, 2):
            share = slice(rank, rank + 1) if size == 2 else slice(None)
            want = np.concatenate([part[:, share].reshape(3, -1) for part in (q, k, v)], axis=1)
            source = CheckpointWeights(checkpoint, ReferenceBackend(), Rank(rank % size, size))
            linear = Linear(source, Matrix(BY_HEAD, "outputs"), bias=True)
            source.finish()
            got = run_linear(source, linear, x)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
            rows = y[:, rank * 32 : rank * 32 + 32] if size == 2 else y
            columns = linear.columns_of("fused")
            np.testing.assert_allclose(got[:, columns], rows, rtol=1e-4, atol=1e-4)


def test_a_matrix_stored_transposed():
    stored = np.random.default_rng(6).standard_normal((64, 32)).astype(np.float32)
    parts = tuple(fuse("c_attn", [Part(n, (16, 64)) for n in "qk"], transposed=True))
    source = CheckpointWeights(Arrays({"c_attn.weight": stored}), ReferenceBackend())
    (weight,) = source.matrix(Matrix(parts[::-1]))
    source.finish()
    assert np.array_equal(weight, np.concatenate([stored.T[16:], stored.T[:16]]))
    types = {"c_attn.weight": "Q8_0"}
    source = CheckpointWeights(Arrays({"c_attn.weight": stored}, types), ReferenceBackend())
    with pytest.raises(ModelError, match="c_attn: a quantized matrix that is stored transposed"):
        source.matrix(Matrix(parts))


def test_rows_of_unit_length():
    """As Baichuan 2 normalises its head."""
    stored = np.random.default_rng(7).standard_normal((8, 64)).astype(np.float32)
    part = Part("lm_head", (8, 64), unit_rows=True)
    source = CheckpointWeights(Arrays({"lm_head.weight": stored}), ReferenceBackend())
    (weight,) = source.matrix(Matrix((part,)))
    want = stored / np.sqrt(np.square(stored.astype(np.float64)).sum(1, keepdims=True))
    np.testing.assert_allclose(weight, want, rtol=1e-6)
    types = {"lm_head.weight": "Q8_0"}
    source = CheckpointWeights(Arrays({"lm_head.weight": stored}, types), ReferenceBackend())
    with pytest.raises(ModelError, match="lm_head: a quantized matrix"):
        source.matrix(Matrix((part,)))


def test_unused_rows_of_a_fused_tensor_are_an_error():
    arrays = {"fused.weight": np.zeros((96, 64), np.float32)}
    source = CheckpointWeights(Arrays(arrays), ReferenceBackend())
    source.matrix(Matrix(FUSED[:1]))
    with pytest.raises(ModelError, match=r"64 of the 96 rows of tensor fused\.weight"):
        source.finish()


def test_a_constant_is_added_to_a_stored_vector():
    stored = np.arange(4, dtype=np.float32)
    source = CheckpointWeights(Arrays({"norm.weight": stored}), ReferenceBackend())
    vector = Vector((Part("norm.weight", (4,)),), plus=1.0)
    assert source.vector(vector).tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("rank", [Rank(0, 1), Rank(1, 2)], ids=["whole", "rank 1 of 2"])
@pytest.mark.parametrize("interleave", [0, PANEL])
def test_a_layer_knows_the_columns_of_each_tensor(rank, interleave):
    """As an adapter needs them, whose tensors are named like the checkpoint's."""
    rng = np.random.default_rng(4)
    arrays = {f"{n}.weight": rng.standard_normal((32, 64)).astype(np.float32) for n in "ab"}
    source = CheckpointWeights(Arrays(arrays), ReferenceBackend(), rank)
    parts = tuple(Part(n, (32, 64)) for n in "ab")
    linear = Linear(source, Matrix(parts, "outputs", interleave))
    assert linear.interleaved == (interleave > 0)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    y = run_linear(source, linear, x)
    for name in "ab":
        share = np.split(x @ arrays[f"{name}.weight"].T, rank.size, axis=1)[rank.rank]
        np.testing.assert_allclose(y[:, linear.columns_of(name)], share, rtol=1e-4, atol=1e-4)
    with pytest.raises(KeyError):
        linear.columns_of("c")


def test_uneven_shares_are_refused():
    with pytest.raises(ModelError, match=r"mlp.gate_proj.*96.*7 ranks"):
        run_mlp(Arrays(mlp_arrays()), ReferenceBackend(), Rank(0, 7))


def change(name: str, array: np.ndarray | None) -> Arrays:
    arrays = mlp_arrays(bias=True)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    return Arrays(arrays)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("mlp.up_proj.weight", None, r"no tensor mlp.up_proj.weight, of shape \[96, 64\]"),
        ("mlp.down_proj.bias", None, "no tensor mlp.down_proj.bias"),
        ("mlp.up_proj.weight", np.zeros((96, 32), np.float32), r"mlp.up_proj.weight .*\[96, 32\]"),
        ("mlp.gate_proj.bias", np.zeros(95, np.float32), r"mlp.gate_proj.bias has shape \[95\]"),
        ("mlp.extra.weight", np.zeros(1, np.float32), "does not: mlp.extra.weight"),
    ],
)
def test_missing_misshapen_and_unused_tensors_are_errors(name, array, words):
    with pytest.raises(ModelError, match=words):
        run_mlp(change(name, array), ReferenceBackend(), bias=True)


def test_many_unused_tensors_are_counted():
    extra = {f"extra.{i:02d}": np.zeros(1, np.float32) for i in range(20)}
    with pytest.raises(ModelError, match=r"extra.00, .*extra.07 and 12 more"):
        run_mlp(Arrays(mlp_arrays() | extra), ReferenceBackend())


def test_tensors_that_are_no_weights_are_ignored():
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    run_mlp(Arrays(mlp_arrays() | extra), ReferenceBackend())
