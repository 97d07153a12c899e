"""How sentence-transformers makes a vector with a checkpoint: modules.json and what it names."""

from __future__ import annotations

from pathlib import Path

from galley.config.pooling import PoolingSettings
from galley.errors import ModelError
from galley.loader.fields import Fields, read_json, read_json_objects
from galley.request import Pooling

#: Values of `pooling_mode`, and the older flags that each replaces.
_MODES: dict[str, Pooling] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
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
    pooling, normalize = None, False
    for number, values in enumerate(read_json_objects(path)):
        module = Fields(values, f"{path}: module {number}")
        kind = module.text("type").rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(directory / module.text("path") / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise module.wrong("type", "Transformer, Pooling or Normalize")
    return None if pooling is None else PoolingSettings(pooling, normalize)


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
