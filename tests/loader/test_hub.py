"""Hub names: which files are fetched, from where, and the errors if they cannot be.

The library reads its settings when it is imported, so questions are asked in a process of their
own, against a hub on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galley.errors import ModelError
from galley.loader.hub import checkpoint_files, quantised_files
from tests.loader.hub_server import TOKEN, hub

REPOSITORIES = {
    "org/plain": {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"not wanted",
        "original/consolidated.safetensors": b"not wanted",
        "README.md": b"not wanted",
    },
    "org/quants": {
        "README.md": b"",
        "m-Q4_K_M.gguf": b"GGUF four",
        "m-Q8_0-00001-of-00002.gguf": b"GGUF eight, part one",
        "m-Q8_0-00002-of-00002.gguf": b"GGUF eight, part two",
        "mmproj-m-f16.gguf": b"GGUF projector",
    },
    "org/private": {"config.json": b"{}", "model.safetensors": b"weights"},
    "org/single": {"model-f16.gguf": b"GGUF only"},
}

_SCRIPT = """
import json, sys
from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.loader import resolve_source, resolve_tokenizer
models, load = json.loads(sys.argv[1])
load = LoadConfig(**load)
for model in models:
    config = ModelConfig(**model)
    try:
        if config.tokenizer:
            answer = {"path": str(resolve_tokenizer(config, load, None))}
        else:
            source = resolve_source(config, load)
            answer = {"path": str(source.path), "format": source.format, "name": source.name}
    except ModelError as error:
        answer = {"error": error.message, "field": error.field}
    print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with hub(REPOSITORIES) as (url, _):
        yield url


def ask(
    home: Path,
    endpoint: str,
    model: dict[str, Any],
    load: dict[str, str] | None = None,
    offline: bool = False,
) -> dict[str, str]:
    [answer] = ask_all(home, endpoint, [model], load, offline)
    return answer


def ask_all(
    home: Path,
    endpoint: str,
    models: list[dict[str, Any]],
    load: dict[str, str] | None = None,
    offline: bool = False,
) -> list[dict[str, str]]:
    """The results of `resolve_source` (or `resolve_tokenizer`) in a fresh process."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps([models, load or {}])],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(models) :]]


def test_a_repository_is_fetched_once_and_used_offline_afterwards(
    tmp_path: Path, endpoint: str
) -> None:
    answer = ask(tmp_path, endpoint, {"model": "org/plain"})
    path = Path(answer["path"])
    assert (answer["format"], answer["name"]) == ("safetensors", "org/plain")
    fetched = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.*"))
    assert fetched == ["config.json", "model.safetensors", "tokenizer.json"]
    assert ask(tmp_path, endpoint, {"model": "org/plain"}, offline=True) == answer
    # A hub that is not there.
    assert ask(tmp_path, "http://127.0.0.1:9", {"model": "org/plain"}) == answer


def test_one_quantisation_of_many(tmp_path: Path, endpoint: str) -> None:
    models = [{"model": "org/quants:q4_k_m"}, {"model": "org/quants:Q8_0"}]
    four, answer = ask_all(tmp_path, endpoint, models)
    assert four["format"] == "gguf"
    assert Path(four["path"]).read_bytes() == b"GGUF four"
    path = Path(answer["path"])
    assert path.name == "m-Q8_0-00001-of-00002.gguf"
    assert path.with_name("m-Q8_0-00002-of-00002.gguf").read_bytes() == b"GGUF eight, part two"
    assert ask(tmp_path, endpoint, {"model": "org/quants:Q8_0"}, offline=True) == answer


def test_a_repository_with_one_gguf_needs_no_quantisation(tmp_path: Path, endpoint: str) -> None:
    answer = ask(tmp_path, endpoint, {"model": "org/single"})
    assert Path(answer["path"]).read_bytes() == b"GGUF only"


def test_a_token_gives_access_to_a_private_repository(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "m.gguf").touch()
    private = {"model": "org/private", "hf_token": TOKEN}
    beside = {"model": str(tmp_path), "hf_config_path": "org/private", "hf_token": TOKEN}
    models = [{"model": "org/private"}, private, beside]
    refused, answer, file = ask_all(tmp_path, endpoint, models)
    assert "--hf-token" in refused["error"]
    assert (Path(answer["path"]) / "model.safetensors").read_bytes() == b"weights"
    assert Path(file["path"]).name == "m.gguf"


def test_the_download_folder_is_used(tmp_path: Path, endpoint: str) -> None:
    folder = tmp_path / "elsewhere"
    answer = ask(tmp_path, endpoint, {"model": "org/plain"}, {"download_dir": str(folder)})
    assert Path(answer["path"]).is_relative_to(folder)


def test_dummy_weights_fetch_no_weight_file(tmp_path: Path, endpoint: str) -> None:
    answer = ask(tmp_path, endpoint, {"model": "org/plain"}, {"load_format": "dummy"})
    assert answer["format"] == "dummy"
    assert not list(Path(answer["path"]).glob("*.safetensors"))


def test_a_tokenizer_by_name_fetches_no_weights(tmp_path: Path, endpoint: str) -> None:
    path = Path(ask(tmp_path, endpoint, {"tokenizer": "org/plain"})["path"])
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "tokenizer.json"]


def test_a_missing_repository_or_revision_is_named(tmp_path: Path, endpoint: str) -> None:
    cases = [
        ({"model": "org/none"}, "no such file or directory here and no such model on the hub"),
        ({"model": "org/plain", "revision": "v9"}, "no revision 'v9'"),
        ({"model": "org/quants"}, "several GGUF files"),
        ({"model": "org/quants:Q2_K"}, "no GGUF file of Q2_K"),
        ({"model": "org/plain:Q4_0"}, "no GGUF file of Q4_0; the repository has: none"),
    ]
    answers = ask_all(tmp_path, endpoint, [model for model, _ in cases])
    for answer, (_, says) in zip(answers, cases, strict=True):
        assert says in answer["error"]


def test_without_a_network_the_message_says_how_to_fix_it(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    offline = ask(tmp_path, nowhere, {"model": "org/plain"}, offline=True)
    assert "HF_HUB_OFFLINE is set" in offline["error"]
    unreachable = ask(tmp_path, nowhere, {"model": "org/plain"})
    assert "the hub cannot be reached" in unreachable["error"]
    for answer in (offline, unreachable):
        assert answer["error"].startswith("org/plain: neither a local path nor in the download")
        assert "Name a local directory" in answer["error"]
        assert answer["field"] == "model"


def test_other_formats_of_the_weights_are_not_fetched() -> None:
    files = [*REPOSITORIES["org/plain"], "model-00001-of-00002.safetensors", "tokenizer.model"]
    assert checkpoint_files(files) == [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    ("files", "quant", "found"),
    [
        (["a-Q4_K_M.gguf", "a-Q4_K_S.gguf"], "Q4_K_M", ["a-Q4_K_M.gguf"]),
        (["a.q8_0.gguf"], "Q8_0", ["a.q8_0.gguf"]),
        (["Q6_K/a-1.gguf", "Q5_K/a-2.gguf"], "q6_k", ["Q6_K/a-1.gguf"]),
        (["Q4_0.gguf"], "Q4_0", ["Q4_0.gguf"]),
        (["a-UD-Q4_0.gguf"], "UD-Q4_0", ["a-UD-Q4_0.gguf"]),
    ],
)
def test_files_of_a_quantisation(files: list[str], quant: str, found: list[str]) -> None:
    assert quantised_files("org/m", files, quant) == found


def test_two_models_of_one_quantisation_are_ambiguous() -> None:
    with pytest.raises(ModelError, match="several GGUF files"):
        quantised_files("org/m:Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0")
