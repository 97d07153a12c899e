"""One name for sizes that config files of older families spell in their own ways."""

from __future__ import annotations

from typing import Any

#: Their own name → the common one, which is set where the config does not have it.
SYNONYMS = {
    "d_model": "hidden_size",
    "max_seq_len": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "model_max_length": "max_position_embeddings",
}

#: By model_type: the longest sequence of families whose config files may not say it.
DEFAULT_POSITIONS = {"bloom": 2048, "falcon": 2048, "mt5": 512, "t5": 512, "umt5": 512}


def with_common_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A copy that has the common names too. `null` counts as missing."""
    config = dict(config)
    for own, common in SYNONYMS.items():
        if config.get(common) is None and config.get(own) is not None:
            config[common] = config[own]
    positions = DEFAULT_POSITIONS.get(str(config.get("model_type")))
    if config.get("max_position_embeddings") is None and positions is not None:
        config["max_position_embeddings"] = positions
    return config
