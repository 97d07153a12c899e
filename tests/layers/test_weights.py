"""Weights by name: joined, woven, cut for ranks, and every tensor accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants

from galley.errors import ModelError
from galley.kernels.ops import Ops, SingleRank
from galley.kernels.reference import ReferenceBackend, ReferenceOps
from galley.layers.linear import Linear
from galley.layers.mlp import GatedMLP
from galley.layers.weights import CheckpointWeights, Part
from galley.loader.tensor import RawTensor
from tests.models.checkpoints import quantized

HIDDEN, INTERMEDIATE = 64, 96


class Arrays:
    """A checkpoint of float32 arrays, some of them quantised to a GGUF type."""

    model_info = None

    def __init__(self, arrays: dict[str, np.ndarray], types: dict[str, str] | None = None):
        self.arrays, self.types = arrays, types or {}

    def names(self) -> list[str]:
        return list(self.arrays)

    def tensor(self, name: str) -> RawTensor:
        return quantized(name, self.arrays[name], self.types.get(name, "float32"))

    def values(self, name: str) -> np.ndarray:
        """What the tensor holds after quantisation."""
        raw = self.tensor(name)
        if raw.dtype == "float32":
            return raw.data
        return quants.dequantize(raw.data, getattr(quants.GGMLQuantizationType, raw.dtype))


class Weaving(ReferenceBackend):
    """The reference with gate and up in turn, as native kernels want them."""

    interleave_gate_up = True


class Rank:
    """One rank of a group; its terms of a sum are left as they are."""

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
    mlp = GatedMLP(source, "mlp", HIDDEN, INTERMEDIATE, bias)
    source.finish()
    x = backend.constant(np.random.default_rng(1).standard_normal((5, HIDDEN)).astype(np.float32))
    return mlp(Ops(ReferenceOps(), source.group), x).numpy()


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", [ReferenceBackend(), Weaving()])
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
@pytest.mark.parametrize("backend", [ReferenceBackend(), Weaving()])
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
    weights = source.rows([Part(n, (32, 64)) for n in "abcd"])
    assert [w.shape[0] for w in weights] == [64, 32, 32]
    x = rng.standard_normal((3, 64)).astype(np.float32)
    y = Linear(weights)(Ops(ReferenceOps()), ReferenceBackend().constant(x)).numpy()
    want = x @ np.concatenate([source._checkpoint.values(f"{n}.weight") for n in "abcd"]).T
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


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
def test_every_tensor_is_accounted_for(name, array, words):
    with pytest.raises(ModelError, match=words):
        run_mlp(change(name, array), ReferenceBackend(), bias=True)


def test_many_left_over_tensors_are_counted():
    extra = {f"extra.{i:02d}": np.zeros(1, np.float32) for i in range(20)}
    with pytest.raises(ModelError, match=r"extra.00, .*extra.07 and 12 more"):
        run_mlp(Arrays(mlp_arrays() | extra), ReferenceBackend())


def test_what_is_no_weight_may_stay():
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    run_mlp(Arrays(mlp_arrays() | extra), ReferenceBackend())
