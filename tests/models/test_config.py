"""Unsupported config values are refused by name; supported ones are read in every spelling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.reference import ReferenceBackend
from galley.layers.weights import CheckpointWeights
from galley.models.config import ModelFields, layer_windows
from galley.models.decoder import Stage
from galley.models.registry import build_model, model_spec
from tests.models.checkpoints import CASES, ROPES, Case, StateDict, hf_logits, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.families import FAMILIES, LONG_ROPE

#: A case of each family that reads its config as Llama does.
FIRST_CASE = {case.architecture: name for name, case in reversed(CASES.items())}


def build(checkpoint, **model_info):
    source = CheckpointWeights(checkpoint, ReferenceBackend())
    return build_model(
        replace(checkpoint.model_info, **model_info), source, Stage(max_positions=32)
    )


@pytest.fixture(scope="module", params=list(FIRST_CASE))
def model(request):
    return make(CASES[FIRST_CASE[request.param]])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("hidden_size", None),
        ("hidden_size", "64"),
        ("hidden_size", -64),
        ("hidden_size", 2**60),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 1.5),
        ("num_hidden_layers", 5000),
        ("num_attention_heads", -4),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", []),
        ("head_dim", 15),
        ("head_dim", True),
        ("vocab_size", 0),
        ("intermediate_size", None),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", 1),
        ("max_position_embeddings", None),
        ("rope_parameters", {"rope_type": "longrope"}),
    ],
)
def test_unusable_values_are_named(model, key, value):
    with pytest.raises(ModelError, match=key.split("_", 1)[1]):
        build(StateDict(model, **{key: value}))


def test_heads_divide_the_hidden_size_where_their_size_is_not_given(model):
    with pytest.raises(ModelError, match="hidden_size is 64, but must be a multiple of num_att"):
        build(StateDict(model, num_attention_heads=5, head_dim=None))


@pytest.mark.parametrize("where", ["config", "rope_parameters"])
@pytest.mark.parametrize(
    ("case", "factor"), [("llama-mha", 0.25), ("qwen2", 0.5), ("phi3", 2.0), ("phi3", 0.2)]
)
def test_heads_that_a_family_does_not_rotate_in_part(case, factor, where):
    checkpoint = StateDict(make(CASES[case]))
    config = checkpoint.model_info.hf_config
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    change = {"partial_rotary_factor": factor}
    config |= {"rope_parameters": rope | change} if where != "config" else {"rope_parameters": rope}
    config |= change if where == "config" else {}
    with pytest.raises(ModelError, match=rf"partial_rotary_factor (= |is ){factor}"):
        build(checkpoint)


def test_sizes_that_the_tensors_do_not_have(model):
    with pytest.raises(ModelError, match=r"(q|k|qkv)_proj.weight has shape"):
        build(StateDict(model, num_attention_heads=8))
    with pytest.raises(ModelError, match=r"embed_tokens.weight has shape \[131, 64\]"):
        build(StateDict(model, vocab_size=132))
    with pytest.raises(ModelError, match=r"no tensor model.layers.3.input_layernorm.weight"):
        build(StateDict(model, num_hidden_layers=4, layer_types=None))


def test_tensors_that_the_config_does_not_have(model):
    checkpoint = StateDict(model, num_hidden_layers=2, layer_types=None)
    with pytest.raises(ModelError, match=r"does not: model.layers.2.\w+.*, model.layers.2"):
        load(checkpoint, ReferenceBackend())


@pytest.mark.parametrize(
    "gone", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_missing_tensors_are_named(model, gone):
    checkpoint = StateDict(model, tie_word_embeddings=False)
    del checkpoint.arrays[gone]
    with pytest.raises(ModelError, match=f"no tensor {gone}"):
        build(checkpoint)


def test_biases_must_agree_with_the_config():
    with pytest.raises(ModelError, match=r"does not: .*self_attn.q_proj.bias|down_proj.bias"):
        load(StateDict(make(CASES["llama-biases"]), attention_bias=False), ReferenceBackend())
    with pytest.raises(ModelError, match=r"no tensor model.layers.0.self_attn.q_proj.bias"):
        build(StateDict(make(CASES["llama-mha"]), attention_bias=True))


def test_a_copy_of_a_tied_weight_is_ignored():
    checkpoint = StateDict(make(CASES["llama-tied"]))
    checkpoint.arrays["lm_head.weight"] = checkpoint.arrays["model.embed_tokens.weight"]
    load(checkpoint, ReferenceBackend())


def test_unknown_architectures_list_the_known_ones(model):
    with pytest.raises(ModelError, match=r"'XGLMForCausalLM'.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        build(StateDict(model), architecture="XGLMForCausalLM", model_impl="galley")
    with pytest.raises(ModelError, match=r"'LlamaForCausaLM' is not .*ones are LlamaForCausalLM"):
        build(StateDict(model), architecture="LlamaForCausaLM", model_impl="galley")


def test_an_architecture_that_is_not_that_of_its_model_type(model):
    wanted = f"XGLMForCausalLM: .* is a {type(model).__name__}"
    with pytest.raises(ModelError, match=wanted):
        build(StateDict(model), architecture="XGLMForCausalLM")


def test_other_quantizations_are_refused(model):
    with pytest.raises(ModelError, match="quip"):
        build(StateDict(model), quantization="quip")


@pytest.mark.parametrize("value", [None, "missing"])
def test_head_dim_and_kv_heads_have_defaults(value):
    """Old Llama configs have neither."""
    model = make(Case("Llama", {"num_key_value_heads": 4}))
    checkpoint = StateDict(model, head_dim=None, num_key_value_heads=None)
    if value == "missing":
        for key in ("head_dim", "num_key_value_heads"):
            del checkpoint.model_info.hf_config[key]
    ids = np.arange(20)
    backend = ReferenceBackend()
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), ids, [20])
    np.testing.assert_allclose(got, hf_logits(model, ids), rtol=1e-3, atol=1e-4)


WINDOWS = {"use_sliding_window": True, "sliding_window": 5}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({}, [0, 0, 0]),
        ({"sliding_window": 5}, [0, 0, 0]),
        ({"use_sliding_window": True, "sliding_window": None}, [0, 0, 0]),
        ({**WINDOWS, "max_window_layers": 2}, [0, 0, 5]),
        ({**WINDOWS, "max_window_layers": 0}, [5, 5, 5]),
        (WINDOWS, [0, 0, 0]),
        (
            {**WINDOWS, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            [0, 5, 0],
        ),
        ({"layer_types": ["full_attention"] * 3}, [0, 0, 0]),
    ],
)
def test_windows_per_layer(config, windows):
    assert layer_windows(ModelFields(config, "test"), 3) == windows


@pytest.mark.parametrize(
    "kinds",
    [["full_attention"], ["chunked_attention"] * 3, "sliding_attention", 7, [["full_attention"]]],
)
def test_unknown_layer_types_are_refused(kinds):
    with pytest.raises(ModelError, match="layer_types"):
        layer_windows(ModelFields({**WINDOWS, "layer_types": kinds}, "test"), 3)


def test_sliding_layers_need_a_window():
    with pytest.raises(ModelError, match="layer_types"):
        layer_windows(ModelFields({"layer_types": ["sliding_attention"] * 3}, "test"), 3)


def test_mistral_has_one_window_for_all():
    with pytest.raises(ModelError, match="layer_types"):
        build(StateDict(make(CASES["mistral-window"]), layer_types=["full_attention"] * 3))


#: Family → its config in the keys of older checkpoints; None takes a key out.
OLDER = {
    "gemma3": {
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_local_base_freq": 5000.0,
        "layer_types": None,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": None,
    },
    "gemma": {"hidden_act": "gelu", "tie_word_embeddings": None},
    "glm": {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "olmo3": {
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {k: v for k, v in ROPES["yarn"].items() if k != "rope_theta"},
    },
    "phi3": {
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": LONG_ROPE["short_factor"],
            "long_factor": LONG_ROPE["long_factor"],
        },
    },
    "smollm3": {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
}


@pytest.mark.parametrize("name", OLDER)
def test_older_configs_describe_the_same_model(name):
    case = FAMILIES[name]
    if name == "olmo3":  # whose rope scaling acts on the layers without a window alone
        plain = {"rope_type": "default", "rope_theta": 10000.0}
        ropes = {"full_attention": ROPES["yarn"], "sliding_attention": plain}
        case = replace(case, config=case.config | {"rope_parameters": ropes})
    model = make(case)
    newer, older = StateDict(model), StateDict(model, **OLDER[name])
    config = {k: v for k, v in older.model_info.hf_config.items() if v is not None}
    wanted = model_spec(newer.model_info)
    assert model_spec(replace(older.model_info, hf_config=config)) == wanted


def test_projections_of_layers_that_read_another_cache_are_ignored():
    """Gemma 4's checkpoints have them."""
    checkpoint = StateDict(make(FAMILIES["gemma4"]))
    for name in ("k_proj", "k_norm", "v_proj"):
        checkpoint.arrays[f"model.layers.5.self_attn.{name}.weight"] = np.zeros(3, np.float32)
    load(checkpoint, ReferenceBackend())
    checkpoint.arrays["model.layers.3.self_attn.v_proj.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match=r"does not: model.layers.3.self_attn.v_proj.weight"):
        load(checkpoint, ReferenceBackend())
