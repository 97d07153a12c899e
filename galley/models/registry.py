"""Supported architectures: which function describes each, and which backends can run it.

A new family is one file and one line here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.config.extras import install_command
from galley.config.registries import BACKENDS
from galley.errors import ModelError
from galley.kernels.backend import Model
from galley.layers.attention import AttentionSpec
from galley.layers.weights import WeightSource
from galley.models.decoder import AnyLayerSpec, DecoderSpec, Stage
from galley.models.pooling_heads import HEAD_TENSORS
from galley.quant import scheme_of


class ModelSpec(Protocol):
    """A model as data: sizes and tensor names (`decoder.DecoderSpec`)."""

    def build(self, source: WeightSource, stage: Stage) -> Model:
        """The stage's part of the model. Raises ModelError as the source does."""


class Architecture(msgspec.Struct, frozen=True):
    """A line of the registry.

    Attributes:
        module, function: ModelInfo → ModelSpec. It raises ModelError for a config value that the
            family does not support.
        backends: names of the backends that can run it, the preferred one first.
    """

    module: str
    function: str
    backends: tuple[str, ...] = tuple(BACKENDS)


#: Runs every other model (--model-impl transformers).
TRANSFORMERS = Architecture(
    "galley.models.transformers_model", "transformers_model", ("reference",)
)

#: Architecture, as config.json names it → its line.
ARCHITECTURES: dict[str, Architecture] = {
    "AfmoeForCausalLM": Architecture("galley.models.afmoe", "afmoe"),
    "AlbertModel": Architecture("galley.models.albert", "albert"),
    "ApertusForCausalLM": Architecture("galley.models.apertus", "apertus"),
    "ArceeForCausalLM": Architecture("galley.models.arcee", "arcee"),
    "BaiChuanForCausalLM": Architecture("galley.models.baichuan", "baichuan"),
    "BaichuanForCausalLM": Architecture("galley.models.baichuan", "baichuan"),
    "BailingMoeV2ForCausalLM": Architecture("galley.models.bailing_moe", "bailing_moe_v2"),
    "BambaForCausalLM": Architecture("galley.models.bamba", "bamba"),
    "BertModel": Architecture("galley.models.bert", "bert"),
    "BloomForCausalLM": Architecture("galley.models.bloom", "bloom"),
    "CLIPTextModel": Architecture("galley.models.clip_text", "clip_text"),
    "CamembertModel": Architecture("galley.models.bert", "roberta"),
    "CodeGenForCausalLM": Architecture("galley.models.gptj", "codegen"),
    "Cohere2ForCausalLM": Architecture("galley.models.cohere", "cohere2"),
    "Cohere2MoeForCausalLM": Architecture("galley.models.cohere_moe", "cohere2_moe"),
    "CohereForCausalLM": Architecture("galley.models.cohere", "cohere"),
    "CwmForCausalLM": Architecture("galley.models.mistral", "cwm"),
    "DebertaV2Model": Architecture("galley.models.deberta", "deberta_v2"),
    "DeciLMForCausalLM": Architecture("galley.models.decilm", "decilm"),
    "DeepseekV2ForCausalLM": Architecture("galley.models.deepseek", "deepseek_v2"),
    "DeepseekV32ForCausalLM": Architecture("galley.models.deepseek", "deepseek_v32"),
    "DeepseekV3ForCausalLM": Architecture("galley.models.deepseek", "deepseek_v3"),
    "DistilBertModel": Architecture("galley.models.bert", "distilbert"),
    "Dots1ForCausalLM": Architecture("galley.models.glm4_moe", "dots1"),
    "ElectraModel": Architecture("galley.models.bert", "electra"),
    "Ernie4_5ForCausalLM": Architecture("galley.models.ernie", "ernie"),
    "Ernie4_5_MoeForCausalLM": Architecture("galley.models.ernie_moe", "ernie_moe"),
    "EuroBertModel": Architecture("galley.models.eurobert", "eurobert"),
    "Exaone4ForCausalLM": Architecture("galley.models.exaone", "exaone4"),
    "ExaoneForCausalLM": Architecture("galley.models.exaone", "exaone"),
    "ExaoneMoeForCausalLM": Architecture("galley.models.exaone", "exaone_moe"),
    "FalconForCausalLM": Architecture("galley.models.falcon", "falcon"),
    "FalconH1ForCausalLM": Architecture("galley.models.falcon_h1", "falcon_h1"),
    "FalconMambaForCausalLM": Architecture("galley.models.mamba", "falcon_mamba"),
    "FlexOlmoForCausalLM": Architecture("galley.models.olmo", "flex_olmo"),
    "GPT2LMHeadModel": Architecture("galley.models.gpt2", "gpt2"),
    "GPTBigCodeForCausalLM": Architecture("galley.models.gpt_bigcode", "gpt_bigcode"),
    "GPTJForCausalLM": Architecture("galley.models.gptj", "gptj"),
    "GPTNeoXForCausalLM": Architecture("galley.models.gpt_neox", "gpt_neox"),
    "Gemma2ForCausalLM": Architecture("galley.models.gemma2", "gemma2"),
    "Gemma3ForCausalLM": Architecture("galley.models.gemma3", "gemma3"),
    "Gemma3nForCausalLM": Architecture("galley.models.gemma3n", "gemma3n"),
    "Gemma4ForCausalLM": Architecture("galley.models.gemma4", "gemma4"),
    "GemmaForCausalLM": Architecture("galley.models.gemma", "gemma"),
    "Glm4ForCausalLM": Architecture("galley.models.glm", "glm4"),
    "Glm4MoeForCausalLM": Architecture("galley.models.glm4_moe", "glm4_moe"),
    "Glm4MoeLiteForCausalLM": Architecture("galley.models.deepseek", "deepseek_v3"),
    "GlmForCausalLM": Architecture("galley.models.glm", "glm"),
    "GlmMoeDsaForCausalLM": Architecture("galley.models.deepseek", "deepseek_v32"),
    "GptOssForCausalLM": Architecture("galley.models.gpt_oss", "gpt_oss"),
    "GraniteForCausalLM": Architecture("galley.models.granite", "granite"),
    "GraniteMoeForCausalLM": Architecture("galley.models.granite_moe", "granite_moe"),
    "GraniteMoeHybridForCausalLM": Architecture("galley.models.granite_hybrid", "granite_hybrid"),
    "GraniteMoeSWAForCausalLM": Architecture("galley.models.granite_moe", "granite_moe_swa"),
    "GraniteMoeSharedForCausalLM": Architecture("galley.models.granite_moe", "granite_moe"),
    "GraniteSWAForCausalLM": Architecture("galley.models.granite", "granite_swa"),
    "GteModel": Architecture("galley.models.gte", "gte"),
    "HeliumForCausalLM": Architecture("galley.models.helium", "helium"),
    "HunYuanDenseV1ForCausalLM": Architecture("galley.models.hunyuan", "hunyuan"),
    "HunYuanMoEV1ForCausalLM": Architecture("galley.models.hunyuan", "hunyuan_moe"),
    "HyperCLOVAXForCausalLM": Architecture("galley.models.granite", "hyperclovax"),
    "InternLM2ForCausalLM": Architecture("galley.models.internlm", "internlm2"),
    "InternLM3ForCausalLM": Architecture("galley.models.internlm", "internlm3"),
    "Jais2ForCausalLM": Architecture("galley.models.nemotron", "jais2"),
    "JambaForCausalLM": Architecture("galley.models.jamba", "jamba"),
    "JinaBertModel": Architecture("galley.models.jina_bert", "jina_bert"),
    "KimiLinearForCausalLM": Architecture("galley.models.kimi_linear", "kimi_linear"),
    "Lfm2ForCausalLM": Architecture("galley.models.lfm2", "lfm2"),
    "Lfm2MoeForCausalLM": Architecture("galley.models.lfm2", "lfm2_moe"),
    "Llama4ForCausalLM": Architecture("galley.models.llama4", "llama4"),
    "LlamaForCausalLM": Architecture("galley.models.llama", "llama"),
    "MPNetModel": Architecture("galley.models.mpnet", "mpnet"),
    "MT5EncoderModel": Architecture("galley.models.t5", "t5"),
    "Mamba2ForCausalLM": Architecture("galley.models.mamba2", "mamba2"),
    "MambaForCausalLM": Architecture("galley.models.mamba", "mamba"),
    "MellumForCausalLM": Architecture("galley.models.qwen_moe", "mellum"),
    "MiMoForCausalLM": Architecture("galley.models.mimo", "mimo"),
    "MiniCPM3ForCausalLM": Architecture("galley.models.minicpm", "minicpm3"),
    "MiniCPMForCausalLM": Architecture("galley.models.minicpm", "minicpm"),
    "MiniMaxM2ForCausalLM": Architecture("galley.models.minimax_m2", "minimax_m2"),
    "Ministral3ForCausalLM": Architecture("galley.models.mistral", "ministral3"),
    "MinistralForCausalLM": Architecture("galley.models.mistral", "ministral"),
    "MistralForCausalLM": Architecture("galley.models.mistral", "mistral"),
    "MixtralForCausalLM": Architecture("galley.models.mixtral", "mixtral"),
    "ModernBertModel": Architecture("galley.models.modernbert", "modernbert"),
    "MptForCausalLM": Architecture("galley.models.mpt", "mpt"),
    "NanoChatForCausalLM": Architecture("galley.models.nanochat", "nanochat"),
    "NemotronForCausalLM": Architecture("galley.models.nemotron", "nemotron"),
    "NemotronHForCausalLM": Architecture("galley.models.nemotron_h", "nemotron_h"),
    "NomicBertModel": Architecture("galley.models.nomic_bert", "nomic_bert"),
    "OPTForCausalLM": Architecture("galley.models.opt", "opt"),
    "Olmo2ForCausalLM": Architecture("galley.models.olmo", "olmo2"),
    "Olmo3ForCausalLM": Architecture("galley.models.olmo", "olmo3"),
    "OlmoForCausalLM": Architecture("galley.models.olmo", "olmo"),
    "OlmoeForCausalLM": Architecture("galley.models.olmoe", "olmoe"),
    "PersimmonForCausalLM": Architecture("galley.models.persimmon", "persimmon"),
    "Phi3ForCausalLM": Architecture("galley.models.phi3", "phi3"),
    "PhiForCausalLM": Architecture("galley.models.phi", "phi"),
    "PhiMoEForCausalLM": Architecture("galley.models.phimoe", "phimoe"),
    "PhimoeForCausalLM": Architecture("galley.models.phimoe", "phimoe"),
    "Qwen2ForCausalLM": Architecture("galley.models.qwen2", "qwen2"),
    "Qwen2MoeForCausalLM": Architecture("galley.models.qwen_moe", "qwen2_moe"),
    "Qwen3ForCausalLM": Architecture("galley.models.qwen3", "qwen3"),
    "Qwen3MoeForCausalLM": Architecture("galley.models.qwen_moe", "qwen3_moe"),
    "Qwen3NextForCausalLM": Architecture("galley.models.qwen3_next", "qwen3_next"),
    "Qwen3_5ForCausalLM": Architecture("galley.models.qwen3_next", "qwen3_5"),
    "Qwen3_5MoeForCausalLM": Architecture("galley.models.qwen3_next", "qwen3_5_moe"),
    "RWKV7ForCausalLM": Architecture("galley.models.rwkv7", "rwkv7"),
    "RobertaModel": Architecture("galley.models.bert", "roberta"),
    "SeedOssForCausalLM": Architecture("galley.models.seed_oss", "seed_oss"),
    "SmolLM3ForCausalLM": Architecture("galley.models.smollm3", "smollm3"),
    "SolarOpenForCausalLM": Architecture("galley.models.glm4_moe", "glm4_moe"),
    "StableLmForCausalLM": Architecture("galley.models.stablelm", "stablelm"),
    "Starcoder2ForCausalLM": Architecture("galley.models.starcoder2", "starcoder2"),
    "T5EncoderModel": Architecture("galley.models.t5", "t5"),
    "UMT5EncoderModel": Architecture("galley.models.t5", "umt5"),
    "VaultGemmaForCausalLM": Architecture("galley.models.gemma2", "vault_gemma"),
    "XLMRobertaModel": Architecture("galley.models.bert", "roberta"),
    "YoutuForCausalLM": Architecture("galley.models.deepseek", "youtu"),
}


#: Beginnings of names of architectures that neither Galley nor its attention under transformers can
#: run → why.
REFUSED = {
    "DebertaFor": "only its later versions are supported (DebertaV2Model)",
}


def find_architecture(model_info: ModelInfo) -> Architecture:
    """Raises ModelError if the architecture is not supported."""
    name, impl = model_info.architecture, model_info.model_impl
    for family, reason in REFUSED.items():
        if name.startswith(family):
            raise ModelError(f"{name} is not supported: {reason}")
    if impl == "transformers":
        _require_transformers()
        return TRANSFORMERS
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if impl == "auto" and _has_transformers():
        return TRANSFORMERS
    known = ", ".join(sorted(ARCHITECTURES))
    other = (
        "--model-impl auto runs models of the transformers library, if it is installed: "
        f"{install_command('transformers')}"
    )
    raise ModelError(
        f"architecture {name!r} is not supported{similar(name)}. {other}. Galley's own are {known}"
    )


def similar(name: str) -> str:
    """The end of an error about an unknown architecture: its likeliest meanings."""
    import difflib  # only needed for errors

    near = difflib.get_close_matches(name, ARCHITECTURES, n=3)
    return f"; similar ones are {', '.join(near)} (--hf-overrides architectures)" if near else ""


def _has_transformers() -> bool:
    return all(importlib.util.find_spec(package) for package in ("torch", "transformers"))


def _require_transformers() -> None:
    if not _has_transformers():
        raise ModelError(
            "--model-impl transformers needs the packages torch and transformers: "
            f"{install_command('transformers')}",
            field="model_impl",
        )


def model_spec(model_info: ModelInfo) -> ModelSpec:
    """The description of the model in a checkpoint.

    Raises ModelError if its architecture, its quantization or a config value is not supported.
    """
    architecture = find_architecture(model_info)
    if architecture is not TRANSFORMERS:
        scheme_of(model_info)
    module = importlib.import_module(architecture.module)
    describe: Callable[[ModelInfo], ModelSpec] = getattr(module, architecture.function)
    spec = describe(model_info)
    if (model_info.head or model_info.is_encoder) and isinstance(spec, DecoderSpec):
        spec = replace(spec, head=None, head_bias=None, ignored=(*spec.ignored, *HEAD_TENSORS))
        if model_info.is_encoder:
            spec = replace(spec, layers=[_seeing_all(layer) for layer in spec.layers])
    return spec


def _seeing_all(layer: AnyLayerSpec) -> AnyLayerSpec:
    """The layer with attention over the whole sequence. Raises ModelError for a mixer that has
    none.
    """
    mixer = getattr(layer, "mixer", None)
    if getattr(mixer, "causal", None) is False:
        return layer
    if not isinstance(mixer, AttentionSpec):
        raise ModelError("only attention can see tokens behind a token")
    return replace(cast(Any, layer), mixer=replace(mixer, causal=False))


def build_model(model_info: ModelInfo, source: WeightSource, stage: Stage) -> Model:
    """The model with its weights from `source`.

    Raises ModelError as `model_spec` does, and for a missing or misshapen tensor. Unused tensors
    are reported by the source (`CheckpointWeights.finish`).
    """
    return model_spec(model_info).build(source, stage)
