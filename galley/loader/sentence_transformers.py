"""How sentence-transformers makes a vector with a checkpoint: modules.json and what it names."""

from __future__ import annotations

from pathlib import Path

from galley.config.pooling import DenseModule, PoolingSettings
from galley.errors import ModelError
from galley.loader.fields import Fields, read_json, read_json_objects
from galley.request import Pooling

#: Values of `pooling_mode`, and the older flags that each replaces.
_MODES: dict[str, Pooling] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
#: Of modules Dense, as torch calls them.
_FUNCTIONS = ("identity", "tanh", "relu", "gelu", "sigmoid")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Names of the file with the longest text, by model type.
_LENGTH_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


def read_pooling(directory: Path) -> PoolingSettings | None:
    """The pooling of a checkpoint's modules.json; None where it has none.

    Raises:
        ModelError: a file is damaged, or asks for a module or a pooling that is not supported.
    """
    path = directory / "modules.json"
    if not path.is_file():
        return None
    prompts, prompt = _prompts(directory)
    pooling, normalize, dense, splade = None, False, [], False
    for number, values in enumerate(read_json_objects(path)):
        module = Fields(values, f"{path}: module {number}")
        kind = module.text("type").rpartition(".")[2]
        match kind:
            case "Pooling":
                pooling = _pooling(directory / module.text("path") / "config.json")
            case "Normalize":
                normalize = True
            case "Dense":
                dense.append(_dense(directory, module.text("path")))
            case "SpladePooling":
                splade = True
                _check_splade(directory / module.text("path") / "config.json")
            case "Transformer" | "MLMTransformer":
                pass
            case _:
                raise module.wrong("type", "Transformer, Pooling, Dense or Normalize")
    if pooling is None and not splade:
        return None
    return PoolingSettings(
        pooling, normalize, dense=tuple(dense), splade=splade, prompts=prompts, prompt=prompt
    )


def read_longest_text(directory: Path) -> int | None:
    """`max_seq_length`, to which sentence-transformers limits a text, in tokens; None = no limit.

    Raises ModelError if a file is damaged.
    """
    for name in _LENGTH_FILES:
        path = directory / name
        if path.is_file():
            fields = Fields(read_json(path), str(path))
            key = "max_seq_length"
            return fields.integer(key, least=1) if fields.has(key) else None
    return None


def _pooling(path: Path) -> Pooling:
    config = Fields(read_json(path), str(path))
    if config.has("pooling_mode"):
        modes = [config.text("pooling_mode")]
    else:
        modes = [mode for flag, mode in _FLAGS.items() if config.flag(flag, False)] or ["mean"]
    if len(modes) > 1 or modes[0] not in _MODES:
        known = ", ".join(_MODES)
        raise ModelError(f"{path}: pooling {' with '.join(modes)} is not supported; known: {known}")
    return _MODES[modes[0]]


def _dense(directory: Path, folder: str) -> DenseModule:
    path = directory / folder / "config.json"
    config = Fields(read_json(path), str(path))
    name = config.text("activation_function", "torch.nn.modules.activation.Tanh")
    function = name.rpartition(".")[2].lower()
    if function not in _FUNCTIONS:
        raise ModelError(f"{path}: activation_function {name} is not supported")
    return DenseModule(
        folder,
        config.integer("in_features", least=1),
        config.integer("out_features", least=1),
        config.flag("bias", True),
        None if function == "identity" else function,
    )


def _check_splade(path: Path) -> None:
    if not path.is_file():
        return
    config = Fields(read_json(path), str(path))
    for key, only in (("pooling_strategy", "max"), ("activation_function", "relu")):
        if config.text(key, only) != only:
            raise ModelError(f"{path}: {key} {config.text(key)} is not supported; known: {only}")


def _prompts(directory: Path) -> tuple[dict[str, str], str | None]:
    """Texts that stand before a text, by name, and the name of the default one."""
    path = directory / "config_sentence_transformers.json"
    if not path.is_file():
        return {}, None
    config = Fields(read_json(path), str(path))
    prompts = config.table("prompts") or {}
    if not all(isinstance(text, str) for text in prompts.values()):
        raise config.wrong("prompts", "an object of texts")
    default = config.text("default_prompt_name") if config.has("default_prompt_name") else None
    return prompts, default
