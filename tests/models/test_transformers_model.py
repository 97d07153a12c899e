"""Models that transformers implements, on Galley's KV cache: equal to transformers by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from galley import LLM, SamplingParams
from galley.config import ModelInfo
from galley.errors import ConfigError, ModelError
from galley.kernels.reference import ReferenceBackend
from galley.loader.config_changes import ConfigChanges
from galley.loader.safetensors import SafetensorsCheckpoint
from galley.models.footprint import measure
from galley.models.registry import ARCHITECTURES, model_spec
from tests.models.checkpoints import Case, hf_logits, in_bfloat16, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.mixtures import IDS

EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}

#: Layer norms; one KV head and learned positions; windows, soft caps and scales; experts, and heads
#: of V that are smaller than those of K.
CASES = {
    "jais2": Case("Jais2", IDS),
    "gpt-bigcode": Case(
        "GPTBigCode",
        {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 256, "n_inner": 96, **IDS},
    ),
    "vault-gemma": Case(
        "VaultGemma",
        {"head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": 2.0, **IDS},
    ),
    "deepseek": Case("DeepseekV3", {**EXPERTS, **LATENT, **IDS}),
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MOE |= {"moe_intermediate_size": 32, "head_dim": 16, **IDS}
MLA = {**LATENT, **IDS, "q_lora_rank": 24}
#: Further families of docs/transformers.md, of which the logits alone are compared.
MORE: dict[str, dict[str, Any]] = {
    "Afmoe": {**MOE, "num_dense_layers": 1, "sliding_window": 9},
    "BitNet": IDS,
    "Cohere2Moe": {**MOE, "sliding_window": 9},
    "Cwm": {**IDS, "head_dim": 16, "sliding_window": 9},
    "ExaoneMoe": MOE,
    "FlexOlmo": {**IDS, "num_experts": 4, "num_experts_per_tok": 2},
    "Glm4MoeLite": {**MLA, **EXPERTS, "n_group": 1},
    "GraniteMoeSWA": {**MOE, "sliding_window": 9},
    "GraniteSWA": {**IDS, "sliding_window": 9},
    "HYV3": MOE,
    "HunYuanMoEV1": {**IDS, "num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "HyperCLOVAX": IDS,
    "Laguna": MOE,
    "Mellum": MOE,
    "NanoChat": {**IDS, "head_dim": 16},
    "Phimoe": {**IDS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "SolarOpen": {**MOE, "n_routed_experts": 4, "n_shared_experts": 1},
    "Youtu": MLA,
}
#: Families that the fallback refuses by name, and what the error says.
REFUSED = {
    "BioGpt": "does not use transformers' attention interface",
    "DiffLlama": "attends more than once",
    "KimiLinear": "keep states of their own",
    "OlmoHybrid": "keep states of their own",
    "RecurrentGemma": "keep states of their own",
    "XGLM": "does not use transformers' attention interface",
}
PROMPT = np.random.default_rng(1).integers(3, 131, 75)
FALLBACK = ConfigChanges(model_impl="transformers")
NEW = 12


@pytest.fixture(scope="module", params=list(CASES))
def saved(request: Any, tmp_path_factory: Any) -> tuple[torch.nn.Module, Path]:
    model, folder = make(CASES[request.param]), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def engine(folder: Path, **flags: Any) -> LLM:
    small = {"max_model_len": 128, "max_num_batched_tokens": 24, "max_num_seqs": 4}
    return LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **small, **flags)


def greedy(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_logits_equal_transformers_in_chunks(saved: Any) -> None:
    model, folder = saved
    want = hf_logits(model, PROMPT)
    checkpoint = SafetensorsCheckpoint(folder, FALLBACK)
    backend = ReferenceBackend()
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), PROMPT, [40, 1, 34])
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def fallback(folder: Path) -> Any:
    backend = ReferenceBackend()
    return backend.build(load(SafetensorsCheckpoint(folder, FALLBACK), backend), LIMITS)


@pytest.mark.parametrize("name", MORE)
def test_logits_of_further_families_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(Case(name, MORE[name]))
    model.save_pretrained(tmp_path)
    want = hf_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), PROMPT)
    got = solo_logits(fallback(tmp_path), PROMPT, [40, 1, 34])
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_states_or_has_its_own_attention_is_refused(name: str, tmp_path: Path) -> None:
    make(Case(name, IDS)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{name}ForCausalLM.*{REFUSED[name]}"):
        fallback(tmp_path)


def test_the_families_of_the_page_are_tested() -> None:
    page = Path("docs/transformers.md").read_text()
    for name in (*MORE, *REFUSED):
        assert f"`{name}ForCausalLM`" in page


def test_bfloat16_is_as_close_as_transformers(saved: Any, tmp_path: Path) -> None:
    """To float32 on the same rounded weights."""
    rounded = in_bfloat16(saved[0])
    rounded.save_pretrained(tmp_path)
    theirs, exact = hf_logits(rounded, PROMPT), hf_logits(rounded.float(), PROMPT)
    backend = ReferenceBackend("bf16")
    model = load(SafetensorsCheckpoint(tmp_path, FALLBACK), backend)
    ours = solo_logits(backend.build(model, LIMITS), PROMPT, [40, 1, 34])
    error, their_error = (np.square(x - exact).mean() for x in (ours, theirs))
    assert 0 < error <= 1.2 * their_error


def test_greedy_tokens_equal_generate(saved: Any) -> None:
    """More rows than slots, prompts in chunks, a common prefix, blocks for half of the rows."""
    model, folder = saved
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, 131, n).tolist() for n in (5, 40, 17, 33, 1)]
    prompts.append([*prompts[1][:35], 7])
    with engine(folder, model_impl="transformers", num_gpu_blocks_override=18) as llm:
        answers = greedy(llm, prompts)
        again = greedy(llm, prompts[-1:])
        assert llm._core.scheduler.counters.prefix_hits > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, **settings
        )
        assert answer == whole[0, len(prompt) :].tolist()
    assert again == answers[-1:]


def test_an_architecture_without_a_line_takes_the_fallback(tmp_path: Path) -> None:
    assert "BitNetForCausalLM" not in ARCHITECTURES
    model = make(Case("BitNet", IDS))
    model.save_pretrained(tmp_path)
    with engine(tmp_path) as llm:
        answer = greedy(llm, [PROMPT[:20].tolist()])
    with engine(tmp_path, model_impl="transformers") as llm:
        assert greedy(llm, [PROMPT[:20].tolist()]) == answer
    info = SafetensorsCheckpoint(tmp_path).model_info
    footprint = measure(info)
    assert footprint.parameters == sum(p.numel() for p in model.parameters())
    assert footprint.logit_weights == 131 * 64
    for impl in ("galley", "vllm"):
        with pytest.raises(ModelError, match="'BitNetForCausalLM' is not supported"):
            engine(tmp_path, model_impl=impl)
    with pytest.raises(ConfigError, match="batch_invariant"):
        engine(tmp_path, batch_invariant=True)
    with pytest.raises(ConfigError, match="backend cpu cannot run BitNetForCausalLM"):
        engine(tmp_path, backend="cpu")


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("Mamba", {}, "its layers keep states of their own"),
        ("XGLM", {"d_model": 64}, "does not use transformers' attention interface"),
        ("DiffLlama", {}, "layer 0 attends more than once"),
        ("Roberta", {"is_decoder": False, "type_vocab_size": 1}, "a token looks at those after"),
    ],
)
def test_models_that_cannot_run_are_refused_by_name(family, config, message, tmp_path) -> None:
    make(Case(family, {**config, **IDS})).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{family}ForCausalLM.*{message}"):
        engine(tmp_path, model_impl="transformers")


@pytest.mark.parametrize(
    "damage",
    [
        {"hidden_size": -1},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}},
    ],
)
def test_a_config_of_which_transformers_makes_no_model_is_refused(
    damage: dict[str, Any], tmp_path: Path
) -> None:
    make(Case("BitNet", IDS)).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | damage))
    with pytest.raises(ModelError, match="BitNetForCausalLM: transformers cannot make the model"):
        engine(tmp_path, model_impl="transformers")


def test_angles_that_follow_the_longest_sequence_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    make(Case("Llama", {"rope_parameters": rope, **IDS})).save_pretrained(tmp_path)
    with engine(tmp_path, model_impl="transformers") as llm:
        assert greedy(llm, [PROMPT[:5].tolist()])
    with pytest.raises(ModelError, match=r"type dynamic .* --max-model-len of up to 256"):
        LLM(str(tmp_path), model_impl="transformers", skip_tokenizer_init=True)


def test_other_attention_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that adds something to its own attention gives other results without it."""
    make(CASES["jais2"]).save_pretrained(tmp_path)
    module = transformers.models.jais2.modeling_jais2
    eager = module.eager_attention_forward

    def other(layer: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **rest: Any) -> Any:
        return eager(layer, q, k, v, mask, scaling * 1.5, **rest)

    monkeypatch.setattr(module, "eager_attention_forward", other)
    with pytest.raises(ModelError, match="other results with Galley's attention than with its own"):
        engine(tmp_path, model_impl="transformers")


def test_code_of_a_checkpoint_runs_with_consent_alone(tmp_path: Path) -> None:
    make(Case("Llama", IDS)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ModelError, match="OwnForCausalLM: its code is in the checkpoint"):
        engine(tmp_path)
    with engine(tmp_path, trust_remote_code=True) as llm:
        answer = greedy(llm, [PROMPT[:20].tolist()])
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with engine(tmp_path, model_impl="galley") as llm:
        assert greedy(llm, [PROMPT[:20].tolist()]) == answer


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    make(Case("BitNet", IDS)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="checkpoints that are not quantized, not gptq"):
        engine(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "lama3"])
def test_an_unknown_architecture_is_told_its_likeliest_meanings(kind: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = {"model_type": kind, "vocab_size": 131, "num_attention_heads": 2, **sizes}
    info = ModelInfo("Lama3ForCausalLM", config, 131, 256, "float32")
    with pytest.raises(ModelError, match="similar ones are LlamaForCausalLM"):
        model_spec(info)
