"""Cached files: least recently used ones are removed, never one in use; several starts at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from galley.kernels.weights import pack
from galley.quant import QuantizedWeight
from galley.runner import cache_files
from galley.runner.cache_files import list_files, make_room, mark_used, remove, shrink
from galley.runner.packed_file import PackedFile, PackedMatrix, write_packed
from galley.runner.weight_cache import _label


def fill(folder: Path, **ages: int) -> None:
    """Files of 100 bytes, used so many seconds after 1970."""
    folder.mkdir(exist_ok=True)
    for name, age in ages.items():
        path = folder / f"{name}-aa-bb.packed"
        path.write_bytes(bytes(100))
        os.utime(path, (age, age))


def models(folder: Path) -> list[str]:
    return [file.model for file in list_files(folder)]


def test_files_are_listed_by_their_last_use(tmp_path):
    fill(tmp_path, b=20, a=30, c=10)
    assert models(tmp_path) == ["c", "b", "a"]
    before = (tmp_path / "c-aa-bb.packed").stat()
    mark_used(tmp_path / "c-aa-bb.packed")
    assert models(tmp_path) == ["b", "a", "c"]
    after = (tmp_path / "c-aa-bb.packed").stat()
    assert (after.st_ctime_ns, after.st_mtime_ns) == (before.st_ctime_ns, before.st_mtime_ns)
    assert list_files(tmp_path / "none") == []


def test_the_least_recently_used_are_removed(tmp_path):
    fill(tmp_path, a=1, b=2, c=3, d=4)
    assert [file.model for file in shrink(tmp_path, 250)] == ["a", "b"]
    assert models(tmp_path) == ["c", "d"]
    assert shrink(tmp_path, 200) == []


def test_a_file_in_use_is_not_removed(tmp_path):
    """Its lock ends with the last reference to its weights."""
    weight = pack(QuantizedWeight(dense=np.ones((48, 64), np.float32)), "bf16")
    path = tmp_path / "m-aa-bb.packed"
    write_packed(path, [PackedMatrix("rows a[48, 64]", [weight])])
    os.utime(path, (0, 0))
    fill(tmp_path, other=5)
    weights = PackedFile.open(path).matrices["rows a[48, 64]"].weights[0].data
    assert not remove(path)
    assert [file.model for file in shrink(tmp_path, 0)] == ["other"]
    assert not make_room(tmp_path, 100, limit=path.stat().st_size + 99)
    assert path.exists()
    assert weights.any()
    del weights
    assert remove(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("limit", "fits", "left"),
    [(300, True, ["b", "c"]), (100, True, []), (99, False, ["a", "b", "c"]), (400, True, None)],
)
def test_room_is_made_within_the_limit(tmp_path, limit, fits, left):
    fill(tmp_path, a=1, b=2, c=3)
    assert make_room(tmp_path, 100, limit) is fits
    assert models(tmp_path) == (["a", "b", "c"] if left is None else left)


def test_a_full_disk_removes_no_file_in_vain(tmp_path, monkeypatch):
    fill(tmp_path, a=1, b=2)
    monkeypatch.setattr(cache_files, "SPARE_BYTES", 2**62)
    assert not make_room(tmp_path, 100, None)
    assert models(tmp_path) == ["a", "b"]


def test_starts_at_the_same_time_write_one_whole_file(tmp_path):
    weight = pack(QuantizedWeight(dense=np.ones((512, 512), np.float32)), "bf16")
    matrices, path = [PackedMatrix("q", [weight])], tmp_path / "w.packed"

    def start(_: int) -> bool:
        write_packed(path, matrices)
        file = PackedFile.open(path)
        return file is not None and np.array_equal(file.matrices["q"].weights[0].data, weight.data)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(start, range(32)))
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/c/models--org--name-1.5/snapshots/0123", "org--name-1.5"),
        ("/c/models--org--name/snapshots/0123/a.gguf", "org--name"),
        ("/models/Qwen3-1.7B", "Qwen3-1.7B"),
        ("/models/Qwen3-1.7B-Q4_0.gguf", "Qwen3-1.7B-Q4_0"),
    ],
)
def test_a_file_is_named_after_its_model(path, label):
    assert _label(Path(path)) == label


def test_the_command_starts_light(tmp_path):
    code = (
        "import sys; from galley.cli.main import main; main(['cache', 'list']);"
        "sys.exit('numpy' in sys.modules)"
    )
    environment = {**os.environ, "GALLEY_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
