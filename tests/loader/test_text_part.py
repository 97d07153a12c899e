"""The text model of a checkpoint with images: the same logits as the whole model gives for text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from galley.kernels.cpu import CpuBackend
from galley.loader.hf_info import info_of_directory
from galley.loader.safetensors import SafetensorsCheckpoint
from galley.loader.text_part import text_name, text_part
from tests.models.checkpoints import SIZES
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.families import FAMILIES

IDS = np.random.default_rng(1).integers(3, 131, 40)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

VISION_QWEN = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [],
}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    config = transformers.Gemma3Config(
        text_config={**SIZES, **FAMILIES["gemma3"].config},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=130,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("gemma3")
    model.save_pretrained(folder)
    with torch.inference_mode():
        logits = model(torch.from_numpy(IDS)[None].long()).logits[0].numpy()
    return folder, logits


def llama4():
    config = transformers.Llama4Config(
        text_config={**SIZES, **FAMILIES["llama4"].config},
        vision_config={
            **VISION,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
    )
    return transformers.Llama4ForConditionalGeneration(config)


def qwen2_5_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = transformers.Qwen3VLConfig(
        text_config={**SIZES, "head_dim": 16, "rope_parameters": rope},
        vision_config=VISION_QWEN,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**SIZES, **FAMILIES["qwen3-moe"].config, "rope_parameters": rope},
        vision_config=VISION_QWEN,
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def mistral3():
    config = transformers.Mistral3Config(
        text_config={**SIZES, "model_type": "mistral", "head_dim": 16, "sliding_window": 9},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 16},
        image_token_index=130,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def gemma4(changes=None):
    config = transformers.Gemma4Config(
        text_config={**SIZES, **FAMILIES["gemma4"].config, **(changes or {})},
        vision_config={**VISION, "head_dim": 16, "num_key_value_heads": 2},
        audio_config=None,
        image_token_id=130,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


WHOLE = {
    "Gemma4ForCausalLM": gemma4,
    "MistralForCausalLM": mistral3,
    "Qwen3MoeForCausalLM": qwen3_vl_moe,
    "Llama4ForCausalLM": llama4,
    "Qwen2ForCausalLM": qwen2_5_vl,
    "Qwen3ForCausalLM": qwen3_vl,
}


@pytest.mark.parametrize("architecture", WHOLE)
def test_other_text_parts(architecture, tmp_path):
    torch.manual_seed(0)
    model = WHOLE[architecture]().eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.12)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        # Of Llama 4, transformers cannot compute a text without images as a whole.
        whole = model.language_model if architecture.startswith("Llama4") else model
        want = whole(torch.from_numpy(IDS)[None].long()).logits[0].numpy()
    checkpoint, backend = SafetensorsCheckpoint(tmp_path), CpuBackend("f32", threads=1)
    assert checkpoint.model_info.architecture == architecture
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [25, 15])
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


#: As published: every setting that it has, whatever its value.
FP8_BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
    "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*embed_vision.*"],
    "config_groups": {
        "group_0": {
            "format": "float-quantized",
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "block",
                "block_structure": [128, 128],
                "group_size": None,
                "symmetric": True,
                "dynamic": False,
                "actorder": None,
                "observer": "static_minmax",
                "observer_kwargs": {},
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "group",
                "block_structure": None,
                "group_size": 128,
                "symmetric": True,
                "dynamic": True,
                "actorder": None,
                "observer": None,
                "observer_kwargs": {},
            },
            "output_activations": None,
        }
    },
}


def test_a_twin_of_gemma_4_31b_in_fp8_blocks(tmp_path):
    """The configuration of RedHatAI/gemma-4-31B-it-FP8-block, of small sizes."""
    torch.manual_seed(0)
    small = {"hidden_size": 160, "hidden_size_per_layer_input": 0}
    small |= {"num_kv_shared_layers": 0, "use_double_wide_mlp": False}
    model = gemma4(small).eval().float()
    tensors = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.12)
            if "language_model" in name and name.endswith("_proj.weight"):
                n, k = parameter.shape
                scale = torch.rand(-(-n // 128), -(-k // 128)) * 0.001 + 0.001
                each = scale.bfloat16().float()
                each = each.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
                codes = (parameter / each).to(torch.float8_e4m3fn)
                parameter.copy_(codes.float() * each)
                tensors |= {name: codes, f"{name}_scale": scale.bfloat16()}
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        want = model(torch.from_numpy(IDS)[None].long()).logits[0].numpy()
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file(load_file(file) | tensors, file)
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": FP8_BLOCK})
    )
    checkpoint, backend = SafetensorsCheckpoint(tmp_path), CpuBackend("f32", threads=1)
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [25, 15])
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_first_configs_of_qwen_vl_have_the_text_keys_at_the_top():
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 64}
    part = text_part(config)
    assert part["architectures"] == ["Qwen2ForCausalLM"]
    assert part["hidden_size"] == 64
    assert text_name("visual.blocks.0.norm1.weight") is None
    assert text_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("older", [False, True])
def test_logits_equal_those_of_the_whole_model(gemma3, older, tmp_path):
    folder, want = gemma3
    if older:  # names before the text model moved below `model`
        tensors = load_file(folder / "model.safetensors")
        renamed = {
            name.replace("model.language_model.", "language_model.model."): t
            for name, t in tensors.items()
        }
        assert any(name.startswith("language_model.model.") for name in renamed)
        save_file(renamed, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        folder = tmp_path
    checkpoint, backend = SafetensorsCheckpoint(folder), CpuBackend("f32", threads=1)
    assert checkpoint.model_info.architecture == "Gemma3ForCausalLM"
    assert not any("vision" in name for name in checkpoint.names())
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40])
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_what_the_first_configs_leave_out(gemma3, tmp_path):
    config = json.loads((gemma3[0] / "config.json").read_text())
    del config["text_config"]["vocab_size"], config["text_config"]["max_position_embeddings"]
    config["eos_token_id"] = [1, 106]
    del config["text_config"]["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = info_of_directory(tmp_path)
    assert (info.vocab_size, info.max_position) == (262208, 131072)
    assert info.eos_token_ids == (1, 106)
