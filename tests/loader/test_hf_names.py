"""Checkpoints that spell names or sizes in an older way load as the newer ones do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from galley.loader.common_keys import with_common_keys
from galley.loader.hf_names import model_name
from galley.loader.safetensors import SafetensorsCheckpoint
from tests.models.checkpoints import make
from tests.models.families import FAMILIES


def test_a_checkpoint_saved_without_the_head_has_the_names_of_one_with_it(tmp_path):
    model = make(FAMILIES["gpt2"])
    model.transformer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = SafetensorsCheckpoint(tmp_path)
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    assert set(checkpoint.names()) == set(state)
    for name in ("transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"):
        assert np.array_equal(checkpoint.tensor(name).data, state[name].numpy())
        assert checkpoint.header(name).shape == tuple(state[name].shape)


@pytest.mark.parametrize(
    ("architecture", "stored", "wanted"),
    [
        ("BloomForCausalLM", "word_embeddings.weight", "transformer.word_embeddings.weight"),
        ("GPTNeoXForCausalLM", "embed_out.weight", "lm_head.weight"),
        ("OPTForCausalLM", "decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc1.bias"),
        ("OPTForCausalLM", "model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc1.bias"),
        ("LlamaForCausalLM", "h.0.weight", "h.0.weight"),
    ],
)
def test_prefixes(architecture, stored, wanted):
    assert model_name(architecture, stored) == wanted


def test_common_keys():
    own = {"n_embd": 64, "n_head": 4, "n_layer": None, "num_hidden_layers": 3, "n_positions": 128}
    common = with_common_keys(own)
    assert common["hidden_size"] == 64
    assert common["num_attention_heads"] == 4
    assert common["num_hidden_layers"] == 3
    assert common["max_position_embeddings"] == 128
    assert with_common_keys({"hidden_size": 8, "n_embd": 64})["hidden_size"] == 8
    assert with_common_keys({"model_type": "bloom"})["max_position_embeddings"] == 2048
