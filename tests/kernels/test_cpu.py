"""The native executable: eager and fused, profile, cache blocks, sampling, limits."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import GroupSpec, NewRow, RequestTable, StepPlan
from galley.errors import ConfigError
from galley.kernels.backend import StepLimits, open_backend
from galley.kernels.cpu import CpuBackend
from galley.kernels.reference import ReferenceBackend
from galley.kernels.sampling import LogitMasks
from galley.request import SamplingParams
from tests.kernels.test_passes import weight
from tests.models.checkpoints import CASES, StateDict, make
from tests.models.driver import LIMITS, Driver, load, solo_logits

VOCAB, TOP = 131, 4
IDS = np.random.default_rng(3).integers(0, VOCAB, 60).astype(np.int32)


@pytest.fixture(scope="module")
def checkpoint():
    return StateDict(make(CASES["qwen3"]))


def build(checkpoint, limits=LIMITS, **options):
    backend = CpuBackend(**{"dense": "f32", "threads": 2, **options})
    return backend.build(load(checkpoint, backend), limits)


def test_activation_bytes_grow_with_the_limits(checkpoint):
    few, many = (build(checkpoint, StepLimits(n, 8, 8)).activation_bytes for n in (64, 640))
    assert 8 * VOCAB * 4 < few < many < 11 * few


@pytest.mark.parametrize("eager", [False, True])
def test_profile_names_the_operations_in_order(checkpoint, eager):
    executable = build(checkpoint, eager=eager)
    driver = Driver(executable)
    driver.put(0, IDS)
    executable.profile(True)
    driver.step({0: 3})
    driver.step({0: 2})
    executable.profile(False)
    driver.step({0: 2})
    timings = executable.timings()
    assert [t[0] for t in timings] == [node.op for node in executable.nodes] + ["sample"]
    assert all(runs == 2 and ns > 0 for _, runs, ns in timings[:-1])
    assert timings[-1][1] == 0


def test_describe_shows_the_program(checkpoint):
    lines = build(checkpoint).describe().splitlines()
    assert "embedding" in lines[0]
    assert lines[-1].startswith("arena")
    assert sum("rope_kv" in line for line in lines) == 3
    assert not any("quantize" in line or "silu_and_mul" in line for line in lines)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_copied_blocks_hold_the_same_keys(checkpoint, name):
    """A second row continues from copies of the first row's blocks."""
    backend = open_backend(name, "f32", threads=1)
    driver = Driver(backend.build(load(checkpoint, backend), LIMITS))
    driver.put(0, IDS)
    driver.put(1, IDS)
    driver.step({0: 40})
    tables = driver.table.block_tables[0]
    driver.executable.copy_blocks(tables[0, :3], tables[1, :3])
    driver.table.num_computed[1] = 40
    both = driver.step({0: 20, 1: 20})
    assert np.array_equal(both[:20], both[20:])
    np.testing.assert_allclose(
        both[:20], solo_logits(driver.executable, IDS, [60])[40:], rtol=1e-3, atol=1e-3
    )


def test_a_step_beyond_the_limits_is_refused(checkpoint):
    executable = build(checkpoint, StepLimits(tokens=8, rows=8, logits=8))
    driver = Driver(executable)
    driver.put(0, IDS)
    with pytest.raises(ValueError, match=r"9 tokens.*8"):
        driver.step({0: 9})
    assert driver.step({0: 8}).shape == (8, VOCAB)


COLUMNS = {
    "temperature": np.array([0, 0.7, 1.3, 1.0, 0, 1.0], np.float32),
    "top_p": np.array([1, 0.8, 1, 0.95, 1, 1], np.float32),
    "top_k": np.array([0, 0, 20, 0, 0, 3], np.int32),
    "min_p": np.array([0, 0, 0.02, 0, 0, 0], np.float32),
    "presence": np.array([0, 0.5, 0, 0, 0, 0], np.float32),
    "frequency": np.array([0, 0, 0.5, 0, 0, 0], np.float32),
    "repetition": np.array([1.3, 1, 1, 1.1, 1, 1], np.float32),
    "seed": np.array([1, 2, 3, 2**64 - 1, 5, 6], np.uint64),
    "num_logprobs": np.array([-1, 0, 2, 4, 1, -1], np.int32),
}


class Sampling:
    """Six rows, each with its own parameters; row 4 has prompt logprobs as well."""

    def __init__(self, executable) -> None:
        self.executable = executable
        executable.allocate_kv(64, executable.kv_layout(16))
        self.table = RequestTable(6, 128, [GroupSpec("full", 16, 1)])
        self.table.block_tables[0][:] = np.arange(1, 49).reshape(6, 8)
        for slot in range(6):
            row = NewRow(slot, slot, IDS[: 10 + slot], 6, 0, SamplingParams(), [])
            self.table.set_row(row)
        executable.bind(self.table, COLUMNS)
        num_new = np.array([10, 11, 12, 13, 9, 15], np.int32)
        num_logits = np.array([1, 1, 1, 1, 9, 1], np.int32)
        num_sampled = np.array([1, 1, 1, 1, 0, 1], np.int32)
        self.plan = StepPlan(1, np.arange(6, dtype=np.int32), num_new, num_logits, num_sampled)

    def results(self):
        samples = self.executable.samples
        return [
            np.array(a)
            for a in (samples.token_ids, samples.logprobs, samples.ranks, samples.top_ids)
        ]


def masks() -> LogitMasks:
    """Of 14 logit rows, two allow few tokens and one is biased."""
    words = {
        0: np.array([1 << 17 | 1 << 63, 5, 0], np.uint64),
        13: np.array([0, 1 << 3, 4], np.uint64),
    }
    addresses = np.zeros(14, np.uint64)
    for row, mask in words.items():
        addresses[row] = mask.ctypes.data
    indptr = np.array([0, 0, 2, *[2] * 12], np.int32)
    return LogitMasks(
        masks=words,
        shared_rows=np.empty(0, np.int32),
        shared=np.empty((0, 3), np.uint64),
        addresses=addresses,
        bias_indptr=indptr,
        bias_ids=np.array([7, 100], np.int32),
        bias_values=np.array([-5.0, 30.0], np.float32),
    )


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_both_backends_sample_alike(checkpoint, masked, eager):
    """The reference samples by the definition; given the same logits, the tokens are the same."""
    limits = StepLimits(tokens=128, rows=8, logits=32, top_logprobs=TOP)
    native = Sampling(build(checkpoint, limits, eager=eager))
    reference_backend = ReferenceBackend()
    reference = Sampling(reference_backend.build(load(checkpoint, reference_backend), limits))
    for side in (native, reference):
        side.executable.set_masks(masks() if masked else None)
        side.executable.run(side.plan, sample=True)
    assert native.executable.logits.shape == (14, VOCAB)
    np.testing.assert_allclose(
        native.executable.logits, reference.executable.logits, rtol=1e-4, atol=1e-4
    )
    reference.executable.logits[:] = native.executable.logits
    reference.executable.sample(reference.plan)
    got, want = native.results(), reference.results()
    assert np.array_equal(got[0], want[0])
    listed = np.repeat(COLUMNS["num_logprobs"], native.plan.num_logits)
    has_list = listed >= 0
    np.testing.assert_allclose(got[1][has_list], want[1][has_list], rtol=1e-5)
    assert np.array_equal(got[2][has_list], want[2][has_list])
    for row, count in enumerate(listed):
        assert np.array_equal(got[3][row, : max(count, 0)], want[3][row, : max(count, 0)])
    # Row 4 samples nothing: its tokens are the prompt's own.
    assert got[0][4:13].tolist() == IDS[1:10].tolist()
    if masked:
        assert got[0][0] in (17, 63, 64, 66)
        assert got[0][1] == 100
        native.executable.set_masks(None)
        native.executable.sample(native.plan)
        assert not np.array_equal(native.results()[0], got[0])


def test_greedy_tokens_need_no_logits(checkpoint):
    limits = StepLimits(tokens=128, rows=8, logits=32, top_logprobs=TOP)
    side = Sampling(build(checkpoint, limits))
    side.executable.run(side.plan, sample=False)
    want = side.executable.logits.argmax(axis=1)
    side.executable.logits[:] = 0
    side.executable.run(side.plan, sample=True, greedy=True)
    assert side.executable.samples.token_ids.tolist() == want.tolist()
    assert not side.executable.logits.any()


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_logits_can_be_changed_before_sampling(checkpoint, name):
    backend = open_backend(name, "f32", threads=1)
    limits = StepLimits(tokens=128, rows=8, logits=32, top_logprobs=TOP)
    side = Sampling(backend.build(load(checkpoint, backend), limits))
    side.executable.run(side.plan, sample=False)
    side.executable.logits[0, 33] = 1000
    side.executable.sample(side.plan)
    assert side.executable.samples.token_ids[0] == 33


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("eager", [False, True])
def test_hidden_states_are_an_output(checkpoint, name, eager):
    """The head on the hidden states of all tokens gives the logits."""
    backend = open_backend(name, "f32", threads=1, eager=eager)
    model = load(checkpoint, backend)
    executable = backend.build(model, LIMITS, outputs=["hidden"])
    driver = Driver(executable)
    driver.put(0, IDS)
    driver.put(1, IDS[::-1])
    logits = driver.step({0: 30, 1: 7})
    hidden = executable.outputs["hidden"]
    assert hidden.shape == (37, 64)
    assert np.array_equal(executable.outputs["logits"], logits)
    wide = hidden.astype(np.float64)
    wide /= np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-6)
    norm = np.asarray(checkpoint.arrays["model.norm.weight"], np.float64)
    head = np.asarray(checkpoint.arrays["lm_head.weight"], np.float64)
    np.testing.assert_allclose(logits, (wide * norm) @ head.T, rtol=1e-3, atol=1e-4)


def test_an_unknown_output_is_refused(checkpoint):
    backend = CpuBackend("f32", threads=1)
    with pytest.raises(ValueError, match="no output attention; it has hidden, logits"):
        backend.build(load(checkpoint, backend), LIMITS, outputs=["attention"])


@pytest.mark.parametrize("eager", [False, True])
def test_a_program_in_parts_is_the_whole_program(checkpoint, eager):
    """Hidden states are there after the layers, before the head has run."""
    backend = CpuBackend("bf16", threads=2, eager=eager)
    model = load(checkpoint, backend)
    whole, parts = (backend.build(model, LIMITS, outputs=["hidden"]) for _ in range(2))
    drivers = [Driver(executable) for executable in (whole, parts)]
    for driver in drivers:
        driver.put(2, IDS)
        driver.put(5, IDS[7:])
    drivers[0].step({2: 40, 5: 20})
    middle = next(i for i, node in enumerate(parts.nodes) if node.op == "select_rows")
    counts = np.array([40, 20], np.int32)
    plan = StepPlan(1, np.array([2, 5], np.int32), counts, counts, np.zeros(2, np.int32))
    parts.run_ops(plan, 0, middle)
    hidden = parts.outputs["hidden"].copy()
    assert np.array_equal(hidden, whole.outputs["hidden"])
    parts.run_ops(plan, middle, len(parts.nodes))
    assert np.array_equal(parts.logits, whole.logits)


class EmbeddingsAlone:
    """The head on embeddings."""

    vocab_size = VOCAB
    kv_layers = ()

    def embed(self, ops, ctx):
        return ops.embedding(weight(VOCAB, 64), ctx.token_ids)

    def forward(self, ops, hidden, ctx):
        return hidden

    def logits(self, ops, hidden, ctx):
        return ops.linear(ops.select_rows(hidden, ctx.logit_index), [weight(VOCAB, 64)])


def test_columns_are_found_by_name():
    """A column costs one line where it is made and one where it is read: by slot (temperature) and
    by token (token_ids).
    """
    executable = CpuBackend("f32", threads=1).build(EmbeddingsAlone(), LIMITS)
    executable.allocate_kv(64, executable.kv_layout(16))
    table = RequestTable(8, 256, [GroupSpec("full", 16, 1)])
    table.set_row(NewRow(0, 0, IDS[:5], 5, 0, SamplingParams(), []))
    columns = {"token_ids": np.zeros(512, np.int32), "temperature": np.zeros(8, np.float32)}
    executable.bind(table, columns)
    columns["token_ids"][:5] = IDS[5:10]
    five, none = np.array([5], np.int32), np.zeros(1, np.int32)
    executable.run(StepPlan(1, none, five, five, none), sample=False)
    x, w = weight(VOCAB, 64).unpack(), weight(VOCAB, 64).unpack()
    np.testing.assert_allclose(executable.logits, x[IDS[5:10]] @ w.T, atol=1e-4)
    with pytest.raises(ValueError, match="no op reads the column warmth"):
        executable.bind(table, {"warmth": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match="column temperature has the dtype f8, not f4"):
        executable.bind(table, {"temperature": np.zeros(8)})


class ActivationOfAPart:
    """Needs the gated activation of a column range, which no kernel computes."""

    vocab_size = VOCAB
    kv_layers = ()

    def embed(self, ops, ctx):
        return ops.embedding(weight(VOCAB, 64), ctx.token_ids)

    def forward(self, ops, hidden, ctx):
        left, _ = ops.split(hidden, [32, 32])
        return ops.silu_and_mul(left)

    def logits(self, ops, hidden, ctx):
        return ops.linear(ops.select_rows(hidden, ctx.logit_index), [weight(VOCAB, 16)])


@pytest.mark.parametrize("eager", [False, True])
def test_a_model_that_no_kernel_computes_is_refused_when_built(eager):
    with pytest.raises(ValueError, match="whole rows"):
        CpuBackend("f32", threads=1, eager=eager).build(ActivationOfAPart(), LIMITS)


class HeadAlone:
    """A head on embeddings, with a given number of outputs."""

    kv_layers = ()

    def __init__(self, vocab: int) -> None:
        self.vocab_size = vocab

    def embed(self, ops, ctx):
        return ops.embedding(weight(VOCAB, 64), ctx.token_ids)

    def forward(self, ops, hidden, ctx):
        return hidden

    def logits(self, ops, hidden, ctx):
        return ops.linear(ops.select_rows(hidden, ctx.logit_index), [weight(self.vocab_size, 64)])


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("vocab", [1000, 1024])
def test_logits_are_those_of_their_row_whatever_the_vocabulary(vocab, eager):
    """Rows of logits of whole pages have padding between them."""
    native = CpuBackend("f32", threads=1, eager=eager).build(HeadAlone(vocab), LIMITS)
    logits = solo_logits(native, IDS[:5], [3, 2])
    x, w = (weight(n, 64).unpack() for n in (VOCAB, vocab))
    np.testing.assert_allclose(logits, x[IDS[:5]] @ w.T, atol=1e-5)
    assert native.logits.shape == (2, vocab)


def test_packed_weights_come_back(checkpoint):
    """A weight made from its packed form is the same handle."""
    backend = CpuBackend("bf16", threads=1)
    head = load(checkpoint, backend).head.weight
    assert backend.from_packed(backend.packed(head)) is head
    reference = ReferenceBackend("bf16")
    assert reference.packed(load(checkpoint, reference).head.weight) is None
    np.testing.assert_array_equal(reference.from_packed(head), head.unpack())


def test_backends_by_name():
    assert open_backend("auto", "bf16", threads=1).name == "cpu"
    assert open_backend("reference", "f32").name == "reference"
    with pytest.raises(ConfigError, match=r"tpu.*auto, cpu, reference"):
        open_backend("tpu", "bf16")
