"""config.json and generation_config.json of a Hugging Face directory → ModelInfo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from galley.config import ModelInfo
from galley.config.architectures import split_architecture
from galley.config.model_info import sees_all
from galley.config.registries import ENCODERS
from galley.errors import ModelError
from galley.loader.chat_templates import templates_of_directory
from galley.loader.classifier_tokens import with_classifier_tokens
from galley.loader.common_keys import with_common_keys
from galley.loader.config_changes import ConfigChanges
from galley.loader.fields import Fields, read_json
from galley.loader.mistral_params import PARAMS, config_of_params, has_params
from galley.loader.rope import max_position, with_rope_keys
from galley.loader.sentence_transformers import read_longest_text, read_pooling
from galley.loader.text_part import TEXT_MODELS, text_part

_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
}
_GENERATION_INTS = ("top_k", "max_new_tokens")
_GENERATION_FLOATS = ("temperature", "top_p", "repetition_penalty", "min_p")


def info_of_directory(directory: Path, changes: ConfigChanges | None = None) -> ModelInfo:
    """Facts of a Hugging Face directory; opens no weight file.

    `hf_config` is config.json with its rope settings in `rope_theta` and `rope_scaling`
    (see `with_rope_keys`), whichever way the file spells them.

    Raises:
        ModelError: a file is missing or damaged, or a key missing or of the wrong type.
    """
    changes = changes or ConfigChanges()
    home = changes.directory or directory
    path = home / "config.json"
    if has_params(home):
        path = home / PARAMS
        raw = config_of_params(path)
    else:
        raw = _with_quantization(read_json(path), home)
    where = str(path)
    config = with_common_keys(raw if changes.model_impl == "transformers" else text_part(raw))
    config = changes.applied(with_rope_keys(config, where), where)
    config = with_classifier_tokens(config, directory)
    architecture, head = architecture_in(config, where), None
    where = f"{where}: {architecture}"
    fields = Fields(config, where)
    if changes.model_impl != "transformers":
        architecture, head = split_architecture(architecture)
    if head is None and changes.classify:
        head = "sequence"
    if head is None and architecture not in ENCODERS and sees_all(config):
        head = "body"
    generation = _generation_fields(home)
    eos = dict.fromkeys((*fields.ids("eos_token_id"), *generation.ids("eos_token_id")))
    bos = fields.ids("bos_token_id") or generation.ids("bos_token_id")
    longest = max_position(config, where)
    return ModelInfo(
        architecture=architecture,
        hf_config=config,
        vocab_size=fields.integer("vocab_size", least=1),
        max_position=min(longest, read_longest_text(directory) or longest),
        dtype=_dtype(fields),
        quantization=(stored := _quantization(fields)),
        online=changes.online(stored),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(eos),
        generation=sampling_defaults(generation),
        chat_template=templates_of_directory(directory).get("default"),
        source=str(directory),
        model_impl=changes.model_impl,
        trust_remote_code=changes.trust_remote_code,
        pooling=read_pooling(directory),
        head=head,
    )


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Sampling defaults of a folder's generation_config.json (for --generation-config FOLDER).

    Raises ModelError if there is none or a value has the wrong type.
    """
    path = directory / "generation_config.json"
    return sampling_defaults(Fields(read_json(path), str(path)))


def sampling_defaults(fields: Fields) -> dict[str, Any]:
    """The keys that act on sampling, only those present."""
    values: dict[str, Any] = {k: fields.integer(k) for k in _GENERATION_INTS if fields.has(k)}
    return values | {k: fields.number(k) for k in _GENERATION_FLOATS if fields.has(k)}


def _generation_fields(directory: Path) -> Fields:
    path = directory / "generation_config.json"
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def architecture_in(config: dict[str, Any], where: str) -> str:
    """The model class that a config names. Raises ModelError."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{where}: architectures names no model class")
    for key in ("text_config", "thinker_config", "encoder"):
        if isinstance(config.get(key), dict):
            raise ModelError(
                f"{where}: {names[0]} is not a text-only model. The text models within others that "
                f"are supported: {', '.join(TEXT_MODELS)} (model_type of text_config)"
            )
    return names[0]


def _dtype(fields: Fields) -> str:
    name = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(
            f"{fields.where}: dtype {name!r} is not supported (float32, float16 and bfloat16 are)"
        )
    return _DTYPES[name]


def _with_quantization(config: dict[str, Any], home: Path) -> dict[str, Any]:
    """The configuration with the quantization that ModelOpt writes to a file of its own."""
    path = home / "hf_quant_config.json"
    if config.get("quantization_config") or not path.is_file():
        return config
    table = Fields(read_json(path), str(path)).table("quantization")
    return {**config, "quantization_config": {"quant_method": "modelopt", **table}}


def _quantization(fields: Fields) -> str | None:
    key = "quantization_config" if fields.has("quantization_config") else "compression_config"
    table = fields.table(key)
    if not table:
        return None
    return Fields(table, f"{fields.where}: {key}").text("quant_method")
