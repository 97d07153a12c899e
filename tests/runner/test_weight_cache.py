"""Packed weights on disk: the same bits at the second start, and no failure without them."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import mmap
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from galley import LLM
from galley.kernels.backend import open_backend
from galley.kernels.weights import pack
from galley.layers.weight_specs import Matrix, Part
from galley.loader import open_checkpoint
from galley.loader.source import Source, default_model
from galley.models.decoder import Stage
from galley.quant import QuantizedWeight
from galley.runner import checksum_cache, packed_file
from galley.runner.cache_files import cache_root
from galley.runner.load import load_model
from galley.runner.packed_file import PackedFile, PackedMatrix, write_packed
from galley.runner.weight_cache import cache_path
from tests.small_model import small_model


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    weights = [
        pack(QuantizedWeight(dense=rng.normal(size=(n, 64)).astype(np.float32)), dense)
        for n, dense in ((48, "bf16"), (7, "f32"))
    ]
    return [
        PackedMatrix("rows a[48, 64] b[7, 64]", weights),
        PackedMatrix("table t[7, 64]", weights[1:]),
    ]


def test_written_weights_are_read_back(tmp_path, matrices):
    path = tmp_path / "w.packed"
    write_packed(path, matrices)
    file = PackedFile.open(path)
    assert file.num_bytes == sum(p.data.nbytes for m in matrices for p in m.weights)
    for matrix in matrices:
        got = file.matrices[matrix.spec]
        for ours, theirs in zip(matrix.weights, got.weights, strict=True):
            assert theirs.format == ours.format
            assert theirs.shape == ours.shape
            assert np.array_equal(theirs.data, ours.data)
    assert list(tmp_path.iterdir()) == [path]


class WriteSizes(io.RawIOBase):
    """A file that remembers the size of each write."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return sum(self.sizes)

    def write(self, data) -> int:
        self.sizes.append(len(data))
        return len(data)


def test_each_write_covers_a_huge_page():
    page = packed_file.HUGE_PAGE
    raw = WriteSizes()
    with io.BufferedWriter(raw, page) as file:
        for n in (5, page + 1, 64, 2 * page, page - 70):
            packed_file._write(file, bytes(n))
        file.flush()
        assert raw.sizes == [page] * 4


@pytest.mark.parametrize("at", [0, 9, 30, 300, -8192, -700, -1])
def test_a_changed_byte_is_noticed(tmp_path, matrices, at, caplog):
    path = tmp_path / "w.packed"
    write_packed(path, matrices)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert PackedFile.open(path) is None
    assert "is damaged and will be rebuilt" in caplog.text


@pytest.mark.parametrize("size", [0, 5, 20, 200, -64, -1])
def test_a_cut_file_is_noticed(tmp_path, matrices, size):
    path = tmp_path / "w.packed"
    write_packed(path, matrices)
    path.write_bytes(path.read_bytes()[:size])
    assert PackedFile.open(path) is None


@pytest.fixture
def old_file(tmp_path, matrices, monkeypatch):
    """A file that changed long enough ago for its checksum to be recorded."""
    path = tmp_path / "w.packed"
    write_packed(path, matrices)
    monkeypatch.setattr(checksum_cache, "SETTLED_NS", -1)
    return path


def checked(path, monkeypatch) -> bool | None:
    """Whether opening read all of the data; None if it was refused."""
    verified = []
    verify = packed_file._verify
    with monkeypatch.context() as patch:
        patch.setattr(packed_file, "_verify", lambda f: (verified.append(f), verify(f)))
        opened = PackedFile.open(path)
    return None if opened is None else bool(verified)


def test_a_file_is_verified_once_per_boot(old_file, monkeypatch, tmp_path):
    assert [checked(old_file, monkeypatch) for _ in range(3)] == [True, False, False]
    boot = tmp_path / "boot"
    boot.write_text("the next boot\n")
    monkeypatch.setattr(checksum_cache, "_BOOT", boot)
    assert [checked(old_file, monkeypatch) for _ in range(2)] == [True, False]
    monkeypatch.setattr(checksum_cache, "_BOOT", tmp_path / "nowhere")
    assert [checked(old_file, monkeypatch) for _ in range(2)] == [True, True]


def _write(path, data):
    path.write_bytes(data)


def _replace(path, data):
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def _map(path, data):
    with path.open("r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        mapped[:] = data


def test_a_damaged_file_is_refused_at_every_open(old_file, monkeypatch):
    """Its checksum is recorded as verified only after it was verified."""
    data = bytearray(old_file.read_bytes())
    data[-700] ^= 1
    _replace(old_file, bytes(data))
    assert [checked(old_file, monkeypatch) for _ in range(3)] == [None, None, None]


@pytest.mark.parametrize("change", [_write, _replace, _map])
def test_any_change_to_a_verified_file_is_noticed(old_file, monkeypatch, change):
    """Also if its size and its times of writing are as before."""
    before = old_file.stat()
    assert checked(old_file, monkeypatch) is True
    data = bytearray(old_file.read_bytes())
    data[-700] ^= 1
    while time.time_ns() - before.st_ctime_ns < 50_000_000:
        pass  # the clock of files is coarse; in production SETTLED_NS covers this
    change(old_file, bytes(data))
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checked(old_file, monkeypatch) is None


def test_a_file_that_has_just_changed_is_verified_each_time(tmp_path, matrices, monkeypatch):
    """It might change again with the same ctime."""
    path = tmp_path / "w.packed"
    write_packed(path, matrices)
    monkeypatch.setattr(checksum_cache, "SETTLED_NS", 10**15)
    assert [checked(path, monkeypatch) for _ in range(2)] == [True, True]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("age", "known"), [(0.0, False), (0.5, True), (1, False), (3, True)])
def test_times_in_whole_seconds_settle_later(age, known):
    now = time.time_ns()
    changed = now // 10**9 * 10**9 if isinstance(age, int) else now | 1
    changed -= int(age * 1e9)
    status = SimpleNamespace(
        st_dev=1, st_ino=1, st_size=1, st_ctime_ns=changed, st_mtime_ns=changed
    )
    assert (checksum_cache.file_state(status, 0) is not None) == known


@pytest.mark.parametrize("change", [None, _write, _replace])
def test_a_file_that_was_written_here_is_not_read_again(tmp_path, matrices, monkeypatch, change):
    path = tmp_path / "w.packed"
    timers = []
    monkeypatch.setattr(
        checksum_cache.threading, "Timer", lambda _, run: timers.append(run) or Mock()
    )
    checksum_cache.mark_when_settled(path, write_packed(path, matrices))
    monkeypatch.setattr(checksum_cache, "SETTLED_NS", -1)
    if change is not None:
        change(path, path.read_bytes())
    timers[0]()
    assert checked(path, monkeypatch) is (change is not None)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"w.packed": 5}', "[" * 100_000, "\xff"])
def test_a_damaged_index_is_ignored(old_file, monkeypatch, text):
    index = old_file.parent / "verified.json"
    index.write_text(text)
    (old_file.parent / "gone").touch()
    assert [checked(old_file, monkeypatch) for _ in range(2)] == [True, False]
    assert json.loads(index.read_text()).keys() == {"w.packed"}


def test_a_large_file_is_verified_by_several_threads(old_file, monkeypatch):
    monkeypatch.setattr(packed_file, "MIN_BYTES_FOR_THREADS", 1)
    assert checked(old_file, monkeypatch) is True
    data = bytearray(old_file.read_bytes())
    data[-700] ^= 1
    _replace(old_file, bytes(data))
    assert checked(old_file, monkeypatch) is None


def test_without_a_file_there_is_no_cache(tmp_path):
    assert PackedFile.open(tmp_path / "none") is None


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    """A copy of the default model, and an empty cache folder of its own."""
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copy(default_model(), tmp_path / "model.gguf"))


def load(path: Path, name: str = "cpu", group=None):
    checkpoint = open_checkpoint(Source(path, "gguf", "m"))
    backend = open_backend(name, "bf16", threads=1)
    cached = cache_path(checkpoint.model_info, backend, "bf16", group)
    loaded = load_model(checkpoint.model_info, checkpoint, backend, Stage(64), cached, group=group)
    return loaded, cached


def packed_linears(model):
    layer = model.layers[29]
    linears = (layer.mixer.qkv, layer.mixer.out, layer.mlp.gate_up, layer.mlp.down)
    return [w for linear in linears for w in linear.weights] + [model.embedding.weight]


def test_a_drafter_has_packed_weights_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path / "cache"))
    drafter = shutil.copy(small_model(), tmp_path / "drafter.gguf")
    flags = {"max_model_len": 64, "kv_cache_memory_bytes": 16 << 20}
    flags["speculative_config"] = {"method": "draft_model", "model": str(drafter)}
    with LLM(str(small_model()), skip_tokenizer_init=True, **flags):
        names = {path.name for path in (tmp_path / "cache" / "weights").glob("*.packed")}
    assert sorted(name.partition("-")[0] for name in names) == ["drafter", "small"]


def test_the_second_start_maps_the_packed_weights_of_the_first(model_file, caplog):
    caplog.set_level("INFO")
    (first, path), (second, _) = load(model_file), load(model_file)
    assert caplog.text.count(f"Packed weights are kept in {path.parent} (92 MiB)") == 1
    assert not first.from_cache
    assert second.from_cache
    assert second.weight_bytes == first.weight_bytes > 90e6
    for ours, theirs in zip(packed_linears(first.model), packed_linears(second.model), strict=True):
        assert theirs.format == ours.format
        assert np.array_equal(theirs.data, ours.data)
    assert not packed_linears(second.model)[0].data.flags.writeable

    del second, theirs  # a mapped file is not removed
    gc.collect()

    # Another state of the file: packed again; the old cache and the leftovers of a crash are gone.
    os.utime(model_file, ns=(1, 1))
    (path.parent / "fresh.part").touch()
    (path.parent / "old.part").touch()
    os.utime(path.parent / "old.part", (1, 1))
    third, newer = load(model_file)
    assert not third.from_cache
    assert newer != path
    kept = {p.name for p in path.parent.iterdir()} - {checksum_cache.INDEX}
    assert kept == {newer.name, "fresh.part"}

    # A damaged cache: packed again.
    with newer.open("r+b") as f:
        f.truncate(1000)
    assert not load(model_file)[0].from_cache
    assert load(model_file)[0].from_cache


class Rank:
    """One rank of a group; its terms of a sum are not summed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, x):
        return x


def test_each_rank_has_packed_weights_of_its_own(model_file):
    whole, _ = load(model_file)
    ranks = [Rank(0, 3), Rank(2, 3)]
    fresh = [load(model_file, group=rank) for rank in ranks]
    assert len({path for _, path in fresh}) == 2
    for rank, (first, _) in zip(ranks, fresh, strict=True):
        again, _ = load(model_file, group=rank)
        assert (first.from_cache, again.from_cache) == (False, True)
        ours_and_theirs = zip(packed_linears(first.model), packed_linears(again.model), strict=True)
        for ours, theirs in ours_and_theirs:
            assert theirs.shape == ours.shape
            assert np.array_equal(theirs.data, ours.data)
        assert again.weight_bytes < whole.weight_bytes
    assert load(model_file)[0].from_cache


def test_a_question_says_how_the_matrix_is_cut_and_ordered():
    a, b = Part("a", (64, 32)), Part("a", (64, 32), (0, 32))
    specs = [
        Matrix((a,)),
        Matrix((b,)),
        Matrix((a,), "outputs"),
        Matrix((a,), "inputs"),
        Matrix((a, a)),
        Matrix((a, a), interleave=16),
    ]
    assert len({str(spec) for spec in specs}) == len(specs)


def test_a_file_without_the_matrices_is_replaced(model_file, matrices):
    checkpoint = open_checkpoint(Source(model_file, "gguf", "m"))
    backend = open_backend("cpu", "bf16", threads=1)
    path = cache_path(checkpoint.model_info, backend, "bf16")
    path.parent.mkdir(parents=True)
    write_packed(path, matrices)
    assert not load(model_file)[0].from_cache
    assert load(model_file)[0].from_cache


def test_a_backend_that_packs_nothing_leaves_no_file(model_file):
    loaded, path = load(model_file, "reference")
    assert not loaded.from_cache
    assert not path.exists()


def test_a_model_larger_than_the_limit_is_not_cached(model_file):
    checkpoint = open_checkpoint(Source(model_file, "gguf", "m"))
    backend = open_backend("cpu", "bf16", threads=1)
    path = cache_path(checkpoint.model_info, backend, "bf16")
    arguments = (checkpoint.model_info, checkpoint, backend, Stage(64), path)
    load_model(*arguments, cache_size=10**6)
    assert not path.exists()
    load_model(*arguments, cache_size=10**9)
    assert path.exists()


def test_without_a_writable_folder_the_model_loads_uncached(model_file, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path / "occupied"))
    assert not load(model_file)[0].from_cache


def test_the_key_covers_format_and_config_and_the_folder_the_environment(tmp_path):
    checkpoint = open_checkpoint(Source(default_model(), "gguf", "m"))
    backend = open_backend("cpu", "bf16", threads=1)
    names = {cache_path(checkpoint.model_info, backend, d).name for d in ("bf16", "f32")}
    model_info = checkpoint.model_info
    wider = dataclasses.replace(model_info, hf_config={**model_info.hf_config, "rope_theta": 1.0})
    names.add(cache_path(wider, backend, "bf16").name)
    assert len(names) == 3
    assert cache_root({"GALLEY_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_root({"VLLM_CACHE_ROOT": "/c", "XDG_CACHE_HOME": "/b"}) == Path("/c/galley")
    assert cache_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/galley")
    assert cache_root({}) == Path.home() / ".cache" / "galley"
