"""`galley cache`: list, prune and clear."""

from __future__ import annotations

import json
import os
import time

import pytest

from galley.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files: of now, of ten days ago and of a hundred."""
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path))
    weights = tmp_path / "weights"
    weights.mkdir()
    for name, days in (("new", 0), ("old", 10), ("oldest", 100)):
        path = weights / f"{name}-model-0123-4567.packed"
        path.write_bytes(bytes(2_000_000))
        used = time.time() - days * 86400 - 60
        os.utime(path, (used, used))
    return weights


def run(capsys, *argv: str):
    assert main(["cache", *argv, "--json"]) == 0
    return [file["model"].removesuffix("-model") for file in json.loads(capsys.readouterr().out)]


def test_list(folder, capsys):
    assert run(capsys, "list") == ["oldest", "old", "new"]
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "oldest-model" in out
    assert "2.0 MB" in out
    assert "100 days ago" in out
    assert "3 files, 6.0 MB" in out


@pytest.mark.parametrize(
    ("flags", "removed"),
    [
        (["--older-than", "30d"], ["oldest"]),
        (["--older-than=1w"], ["oldest", "old"]),
        (["--max-size", "4m"], ["oldest"]),
        (["--max-size", "0"], ["oldest", "old", "new"]),
        (["--older-than", "200d", "--max-size", "3m"], ["oldest", "old"]),
    ],
)
def test_prune(folder, capsys, flags, removed):
    assert run(capsys, "prune", *flags) == removed
    assert len(run(capsys, "list")) == 3 - len(removed)


def test_clear(folder, capsys):
    (folder / "x.part").touch()
    os.utime(folder / "x.part", (1, 1))
    assert run(capsys, "clear") == ["oldest", "old", "new"]
    assert list(folder.iterdir()) == []
    assert run(capsys, "clear") == []


@pytest.mark.parametrize(
    "argv",
    [
        ["shrink"],
        ["list", "clear"],
        ["prune"],
        ["clear", "--older-than", "3d"],
        ["prune", "--older-than", "soon"],
        ["prune", "--older-than", "-3d"],
        ["prune", "--max-size", "-1"],
    ],
)
def test_bad_input_is_one_line_and_removes_nothing(folder, capsys, argv):
    assert main(["cache", *argv]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert len(list(folder.iterdir())) == 3
