"""Inverse frequencies and tables against transformers' own, for every scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from galley.errors import ModelError
from galley.layers.rotary import rotary_table
from galley.models.config import ROTARY_TYPES, ModelFields, read_rotary
from tests.models.checkpoints import ROPES

SIZES = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 512}
HEAD_DIM = 64


def read(config: dict, max_position: int = 512):
    fields = ModelFields({"max_position_embeddings": max_position, **config}, "test")
    return read_rotary(fields, HEAD_DIM, 10000.0)


@pytest.mark.parametrize("name", list(ROPES))
def test_table_equals_transformers(name):
    config = LlamaConfig(**SIZES, rope_parameters=dict(ROPES[name]))
    theirs = LlamaRotaryEmbedding(config)
    cos, sin = theirs(torch.zeros(1), torch.arange(512)[None])
    table = rotary_table(read({"rope_parameters": ROPES[name]}), 512)
    want = torch.cat([cos[0, :, : HEAD_DIM // 2], sin[0, :, : HEAD_DIM // 2]], dim=1).numpy()
    # Both round position * frequency to float32: at position 511 that is 3e-5.
    np.testing.assert_allclose(table, want, atol=1e-4)
    assert table.dtype == np.float32


def test_dynamic_is_transformers_at_the_longest_sequence():
    settings = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}
    config = LlamaConfig(**SIZES, rope_parameters=dict(settings))
    want, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=3 * 512)
    got = read({"rope_parameters": settings}).inverse_frequencies()
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_a_position_has_one_rotation_whatever_the_table_length():
    rotary = read({"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}})
    assert np.array_equal(rotary_table(rotary, 64), rotary_table(rotary, 1500)[:64])


@pytest.mark.parametrize("name", list(ROPES))
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_old_spelling_gives_the_same_rotary(name, key):
    settings = dict(ROPES[name])
    old = {"rope_theta": settings.pop("rope_theta"), "rope_scaling": settings}
    settings[key] = settings.pop("rope_type")
    assert read(old) == read({"rope_parameters": ROPES[name]})


def test_null_scaling_is_plain():
    assert read({"rope_scaling": None, "rope_theta": 7.0}) == read({"rope_theta": 7.0})
    assert read({}).theta == 10000.0


def test_frequency_factors_divide():
    factors = np.linspace(1, 8, HEAD_DIM // 2).tolist()
    rotary = read({"rope_scaling": {"rope_type": "frequency_factors", "factors": factors}})
    plain = read({}).inverse_frequencies()
    np.testing.assert_allclose(
        rotary.inverse_frequencies(), plain / np.asarray(factors, np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize("length", [128, 129])
def test_long_rotary_has_the_factors_of_the_longest_sequence(kind, length):
    short, long = (np.linspace(1, top, HEAD_DIM // 2).tolist() for top in (1.5, 30))
    settings = {"short_factor": short, "long_factor": long, "rope_theta": 10000.0}
    settings |= {"original_max_position_embeddings": 128, "rope_type": "longrope"}
    config = LlamaConfig(**SIZES, rope_parameters=dict(settings))
    device = torch.device("cpu")
    want, amplitude = ROPE_INIT_FUNCTIONS["longrope"](config, device, seq_len=length)
    got = read({"rope_parameters": {**settings, "rope_type": kind}}).for_length(length)
    np.testing.assert_allclose(got.inverse_frequencies(), want.numpy(), rtol=1e-6)
    assert got.amplitude() == pytest.approx(amplitude)


def test_all_axes_of_a_text_have_one_position():
    sections = {"type": "mrope", "mrope_section": [16, 8, 8]}
    assert read({"rope_scaling": sections}) == read({})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "xpos"}}, "xpos"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "alpha": 0}}, "alpha"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (
            {"rope_parameters": {**ROPES["llama3"], "high_freq_factor": 1.0}},
            "high_freq_factor",
        ),
        ({"rope_parameters": {**ROPES["yarn"], "truncate": 1}}, "truncate"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per kind of layer"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "frequency_factors", "factors": [1.0]}}, "factors"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
    ],
)
def test_unsupported_values_are_refused_by_name(config, named):
    with pytest.raises(ModelError, match=named):
        read(config)


def test_every_type_is_tested():
    tested = {settings["rope_type"] for settings in ROPES.values()}
    others = {"dynamic", "frequency_factors", "longrope", "su", "mrope", "ntk", "proportional"}
    assert tested | others == set(ROTARY_TYPES)
