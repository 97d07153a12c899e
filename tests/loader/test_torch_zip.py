"""PyTorch files: written by torch, read without it; hostile ones are errors."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.loader.source import resolve_source
from galley.loader.torch_zip import INDEX, TorchFile, torch_files

torch = pytest.importorskip("torch")


def _save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def _tensors() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return OrderedDict(
        whole=base,
        shared=base[1:3],
        transposed=base.t(),
        strided=base[:, ::2],
        scalar=torch.tensor(3.5),
        empty=torch.empty(0, 4),
        half=torch.randn(3, 5).half(),
        bfloat=torch.randn(3, 5).bfloat16(),
        long=torch.arange(5),
        flag=torch.tensor([True, False]),
        float8=torch.randn(4, 4).to(torch.float8_e4m3fn),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_those_that_torch_wrote(tmp_path: Path, protocol: int) -> None:
    tensors = _tensors()
    file = TorchFile(_save(tmp_path / "m.bin", tensors, pickle_protocol=protocol))
    assert file.names() == list(tensors)
    for name, tensor in tensors.items():
        raw, header = file.tensor(name), file.header(name)
        assert header.shape == raw.shape == tuple(tensor.shape) == raw.data.shape
        assert raw.dtype == header.dtype == str(tensor.dtype).removeprefix("torch.")
        ours = raw.data if raw.dtype == "bool" else raw.data.astype(np.float64)
        theirs = tensor.detach() if raw.dtype == "bool" else tensor.detach().double()
        assert np.array_equal(ours, theirs.numpy()), name


def test_a_module_has_metadata(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    file = TorchFile(_save(tmp_path / "m.bin", module.state_dict()))
    assert np.array_equal(file.tensor("weight").data, module.weight.detach().numpy())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": _Evil()}, r"builtin.*\.exec, which is neither a tensor"),
        ({"a": {"b": torch.ones(1)}}, "'a' is a dict, not a tensor"),
        ([torch.ones(1)], "a list, not a dictionary"),
        ({"a": torch.ones(1).expand(9)}, "repeats them"),
        (torch.nn.Linear(1, 1), "may run code"),
    ],
)
def test_what_is_not_tensors_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchFile(_save(tmp_path / "m.bin", value))


def test_older_files_and_others_are_refused(tmp_path: Path) -> None:
    old = tmp_path / "old.bin"
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"before release 1\.6"):
        TorchFile(old)
    (tmp_path / "x.bin").write_bytes(b"abc")
    with pytest.raises(ModelError, match="not a PyTorch file"):
        TorchFile(tmp_path / "x.bin")


def test_compressed_records_and_missing_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
    with pytest.raises(ModelError, match="compressed"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/other", b"")
    with pytest.raises(ModelError, match=r"without one data\.pkl"):
        TorchFile(path)


def test_mutations_are_errors_or_tensors_within_the_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(_tensors(), buffer)
    good, rng, refused = buffer.getvalue(), random.Random(0), 0
    for i in range(1500):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(1500)
            data[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / str(i)
        path.write_bytes(data or b"x")
        try:
            file = TorchFile(path)
            total = sum(file.tensor(name).data.nbytes for name in file.names())
            assert total < 20 * len(good)
        except ModelError:
            refused += 1
        path.unlink()
    assert 100 < refused < 1500


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    _save(tmp_path / "pytorch_model.bin", {"a": torch.ones(1)})
    _save(tmp_path / "training_args.bin", {"a": torch.ones(1)})

    def chosen(requested: str) -> str:
        model = ModelConfig(model=str(tmp_path))
        return resolve_source(model, LoadConfig(load_format=requested)).format

    assert chosen("auto") == chosen("pt") == "pt"
    assert torch_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    with pytest.raises(ModelError, match="holds pt weights"):
        chosen("safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert (chosen("auto"), chosen("pt")) == ("safetensors", "pt")


def test_shards_by_the_index(tmp_path: Path) -> None:
    from galley.loader.safetensors import open_all

    _save(tmp_path / "a.bin", {"x": torch.ones(1)})
    _save(tmp_path / "b.bin", {"y": torch.ones(1)})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.bin", "y": "b.bin"}}))
    assert sorted(open_all(tmp_path, INDEX, torch_files, TorchFile)) == ["x", "y"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "b.bin", "y": "b.bin"}}))
    with pytest.raises(ModelError, match="should hold x"):
        open_all(tmp_path, INDEX, torch_files, TorchFile)
