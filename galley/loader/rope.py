"""A checkpoint's longest sequence, and one spelling for its rope settings."""

from __future__ import annotations

from typing import Any

from galley.loader.fields import MAX_POSITIONS, Fields

#: Model types whose sequences have no longest length, and the one that is taken unless the config
#: or --max-model-len names another.
_WITHOUT_POSITIONS = ("falcon_mamba", "mamba", "mamba2", "rwkv7")
UNLIMITED = 2**20
#: Scalings whose max_position_embeddings is the scaled length already.
_LENGTH_INCLUDED = ("default", "llama3", "longrope", "su", "frequency_factors")
#: Families whose max_position_embeddings is that, whatever the scaling.
_LENGTH_INCLUDED_IN = ("gemma3", "gemma3_text")
#: Families whose max_position_embeddings counts the rows up to that of the padding token, too.
_ROWS_BEFORE_FIRST = ("camembert", "mpnet", "roberta", "xlm-roberta")


def with_rope_keys(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A copy whose rope settings are in `rope_theta` and `rope_scaling` (None or with `rope_type`).

    Newer checkpoints write them as `rope_parameters`, older ones spell `rope_type` as `type`.
    Settings per kind of layer (an object of objects) are left as they are.
    """
    config = dict(config)
    parameters = Fields(config, where).table("rope_parameters")
    if parameters and not any(isinstance(v, dict) for v in parameters.values()):
        if "rope_theta" in parameters:
            config["rope_theta"] = parameters["rope_theta"]
        scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
        config["rope_scaling"] = scaling
    scaling = dict(Fields(config, where).table("rope_scaling"))
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    plain = not scaling or (set(scaling) == {"rope_type"} and scaling["rope_type"] == "default")
    config["rope_scaling"] = None if plain else scaling
    return config


def max_position(config: dict[str, Any], where: str) -> int:
    """Longest sequence after rope scaling, from a config that `with_rope_keys` has normalised."""
    own = Fields(config, where)
    if config.get("model_type") in _WITHOUT_POSITIONS:
        return own.integer("max_position_embeddings", UNLIMITED, least=1, most=MAX_POSITIONS)
    length = own.integer("max_position_embeddings", least=1, most=MAX_POSITIONS)
    if config.get("model_type") in _ROWS_BEFORE_FIRST:
        length -= first_position(own)
        if length < 1:
            raise own.wrong("max_position_embeddings", "above pad_token_id + 1")
    # Beyond it, lengths are extrapolated with other angles.
    length = min(length, own.integer("max_trained_positions", length, least=1))
    scaling = config.get("rope_scaling")
    if scaling is None:
        return length
    fields = Fields(scaling, f"{where}: rope_scaling")
    kind = fields.text("rope_type", "default")
    if kind in _LENGTH_INCLUDED or config.get("model_type") in _LENGTH_INCLUDED_IN:
        return length
    if kind == "yarn":
        length = fields.integer("original_max_position_embeddings", length, least=1)
    factor = fields.number("factor", 1.0)
    if factor <= 0:
        raise fields.wrong("factor", "above 0")
    if length * factor > MAX_POSITIONS:
        raise fields.wrong("factor", f"such that there are at most {MAX_POSITIONS} positions")
    return int(length * factor)


def first_position(config: Fields) -> int:
    """The row of position 0 in the table of RoBERTa and the models derived from it."""
    return config.integer("pad_token_id", 1) + 1
