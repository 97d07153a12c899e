"""The families of the registry for people: a title, the kind of layers and one checkpoint each.

Shown by `galley models` and in docs/models.md. Imports no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from galley.loader.gguf_names import ARCHITECTURES as GGUF_ARCHITECTURES
from galley.models.registry import ARCHITECTURES

#: dense: attention and feed-forward blocks; encoder: such that see the whole text and give
#: vectors; mixture: with experts; recurrent: with states.
Kind = Literal["dense", "encoder", "mixture", "recurrent"]


class Entry(NamedTuple):
    """Facts of an architecture besides its line of the registry.

    Attributes:
        checkpoint: the hub name of one that has it.
    """

    title: str
    kind: Kind
    checkpoint: str


class Row(NamedTuple):
    """An architecture with all that is shown of it."""

    architecture: str
    title: str
    kind: Kind
    checkpoint: str
    backends: tuple[str, ...]
    gguf: tuple[str, ...]


#: Architecture → its entry.
ENTRIES: dict[str, Entry] = {
    "AfmoeForCausalLM": Entry("Arcee Trinity", "mixture", "arcee-ai/Trinity-Mini"),
    "AlbertModel": Entry("ALBERT", "encoder", "sentence-transformers/paraphrase-albert-small-v2"),
    "ApertusForCausalLM": Entry("Apertus", "dense", "swiss-ai/Apertus-8B-Instruct-2509"),
    "ArceeForCausalLM": Entry("Arcee AFM", "dense", "arcee-ai/AFM-4.5B"),
    "BaiChuanForCausalLM": Entry("Baichuan 7B", "dense", "baichuan-inc/Baichuan-7B"),
    "BaichuanForCausalLM": Entry("Baichuan 2", "dense", "baichuan-inc/Baichuan2-7B-Chat"),
    "BailingMoeV2ForCausalLM": Entry("Ling 2.0, Ring 2.0", "mixture", "inclusionAI/Ling-mini-2.0"),
    "BambaForCausalLM": Entry("Bamba", "recurrent", "ibm-ai-platform/Bamba-9B-v2"),
    "BertModel": Entry("BERT", "encoder", "sentence-transformers/all-MiniLM-L6-v2"),
    "BloomForCausalLM": Entry("BLOOM", "dense", "bigscience/bloom-560m"),
    "CLIPTextModel": Entry("CLIP, its text model", "encoder", "openai/clip-vit-base-patch32"),
    "CamembertModel": Entry("CamemBERT", "encoder", "dangvantuan/sentence-camembert-base"),
    "CodeGenForCausalLM": Entry("CodeGen", "dense", "Salesforce/codegen-350M-mono"),
    "Cohere2ForCausalLM": Entry("Command R7B", "dense", "CohereLabs/c4ai-command-r7b-12-2024"),
    "Cohere2MoeForCausalLM": Entry("Command A+", "mixture", "CohereLabs/command-a-plus-05-2026"),
    "CohereForCausalLM": Entry("Command-R", "dense", "CohereLabs/c4ai-command-r-v01"),
    "CwmForCausalLM": Entry("Code World Model", "dense", "facebook/cwm"),
    "DebertaV2Model": Entry("DeBERTa 2 and 3", "encoder", "microsoft/deberta-v3-base"),
    "DeciLMForCausalLM": Entry(
        "Llama-Nemotron, DeciLM", "dense", "nvidia/Llama-3_3-Nemotron-Super-49B-v1_5"
    ),
    "DeepseekV2ForCausalLM": Entry("DeepSeek V2", "mixture", "deepseek-ai/DeepSeek-V2-Lite"),
    "DeepseekV32ForCausalLM": Entry("DeepSeek V3.2", "mixture", "deepseek-ai/DeepSeek-V3.2"),
    "DeepseekV3ForCausalLM": Entry("DeepSeek V3, Kimi K2", "mixture", "deepseek-ai/DeepSeek-V3"),
    "DistilBertModel": Entry(
        "DistilBERT", "encoder", "sentence-transformers/msmarco-distilbert-base-v4"
    ),
    "Dots1ForCausalLM": Entry("dots.llm1", "mixture", "rednote-hilab/dots.llm1.inst"),
    "ElectraModel": Entry("ELECTRA", "encoder", "cross-encoder/ms-marco-electra-base"),
    "Ernie4_5ForCausalLM": Entry("ERNIE 4.5", "dense", "baidu/ERNIE-4.5-0.3B-PT"),
    "Ernie4_5_MoeForCausalLM": Entry("ERNIE 4.5 MoE", "mixture", "baidu/ERNIE-4.5-21B-A3B-PT"),
    "EuroBertModel": Entry("EuroBERT", "encoder", "EuroBERT/EuroBERT-210m"),
    "Exaone4ForCausalLM": Entry("EXAONE 4", "dense", "LGAI-EXAONE/EXAONE-4.0-1.2B"),
    "ExaoneForCausalLM": Entry("EXAONE 3", "dense", "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct"),
    "ExaoneMoeForCausalLM": Entry("K-EXAONE", "mixture", "LGAI-EXAONE/K-EXAONE-236B-A23B"),
    "FalconForCausalLM": Entry("Falcon", "dense", "tiiuae/falcon-7b"),
    "FalconH1ForCausalLM": Entry("Falcon-H1", "recurrent", "tiiuae/Falcon-H1-0.5B-Instruct"),
    "FalconMambaForCausalLM": Entry("Falcon Mamba", "recurrent", "tiiuae/falcon-mamba-7b"),
    "FlexOlmoForCausalLM": Entry("FlexOlmo", "mixture", "allenai/FlexOlmo-7x7B-1T"),
    "GPT2LMHeadModel": Entry("GPT-2", "dense", "openai-community/gpt2"),
    "GPTBigCodeForCausalLM": Entry("SantaCoder, StarCoder", "dense", "bigcode/starcoderbase-1b"),
    "GPTJForCausalLM": Entry("GPT-J", "dense", "EleutherAI/gpt-j-6b"),
    "GPTNeoXForCausalLM": Entry("GPT-NeoX, Pythia", "dense", "EleutherAI/pythia-160m"),
    "Gemma2ForCausalLM": Entry("Gemma 2", "dense", "google/gemma-2-2b-it"),
    "Gemma3ForCausalLM": Entry("Gemma 3 (text)", "dense", "google/gemma-3-1b-it"),
    "Gemma3nForCausalLM": Entry("Gemma 3n (text)", "dense", "google/gemma-3n-E2B-it"),
    "Gemma4ForCausalLM": Entry("Gemma 4 (text)", "dense", "google/gemma-4-E2B-it"),
    "GemmaForCausalLM": Entry("Gemma", "dense", "google/gemma-2b-it"),
    "Glm4ForCausalLM": Entry("GLM-4 0414", "dense", "zai-org/GLM-4-9B-0414"),
    "Glm4MoeForCausalLM": Entry("GLM-4.5", "mixture", "zai-org/GLM-4.5-Air"),
    "Glm4MoeLiteForCausalLM": Entry("GLM 4.7 Flash", "mixture", "zai-org/GLM-4.7-Flash"),
    "GlmForCausalLM": Entry("GLM-4", "dense", "zai-org/glm-4-9b-chat-hf"),
    "GlmMoeDsaForCausalLM": Entry("GLM 5", "mixture", "zai-org/GLM-5"),
    "GptOssForCausalLM": Entry("gpt-oss", "mixture", "openai/gpt-oss-20b"),
    "GraniteForCausalLM": Entry("Granite 3", "dense", "ibm-granite/granite-3.3-2b-instruct"),
    "GraniteMoeForCausalLM": Entry(
        "Granite 3 MoE", "mixture", "ibm-granite/granite-3.1-1b-a400m-instruct"
    ),
    "GraniteMoeHybridForCausalLM": Entry(
        "Granite 4", "recurrent", "ibm-granite/granite-4.0-h-tiny"
    ),
    "GraniteMoeSWAForCausalLM": Entry(
        "Granite-MoE with windows", "mixture", "ibm-granite/granite-swash-3b-a600m"
    ),
    "GraniteMoeSharedForCausalLM": Entry(
        "Granite MoE, shared experts", "mixture", "ibm-research/moe-7b-1b-active-shared-experts"
    ),
    "GraniteSWAForCausalLM": Entry("Granite with windows", "dense", "ibm-granite/granite-swash-2b"),
    "GteModel": Entry("GTE (NewModel)", "encoder", "Alibaba-NLP/gte-multilingual-base"),
    "HeliumForCausalLM": Entry("Helium", "dense", "kyutai/helium-1-2b"),
    "HunYuanDenseV1ForCausalLM": Entry("Hunyuan", "dense", "tencent/Hunyuan-1.8B-Instruct"),
    "HunYuanMoEV1ForCausalLM": Entry("Hunyuan A13B", "mixture", "tencent/Hunyuan-A13B-Instruct"),
    "HyperCLOVAXForCausalLM": Entry(
        "HyperCLOVA X SEED", "dense", "naver-hyperclovax/HyperCLOVAX-SEED-Think-14B"
    ),
    "InternLM2ForCausalLM": Entry("InternLM 2", "dense", "internlm/internlm2_5-1_8b-chat"),
    "InternLM3ForCausalLM": Entry("InternLM 3", "dense", "internlm/internlm3-8b-instruct"),
    "Jais2ForCausalLM": Entry("Jais 2", "dense", "inceptionai/Jais-2-8B-Chat"),
    "JambaForCausalLM": Entry("Jamba", "recurrent", "ai21labs/AI21-Jamba-Reasoning-3B"),
    "JinaBertModel": Entry("Jina Embeddings 2", "encoder", "jinaai/jina-embeddings-v2-base-en"),
    "KimiLinearForCausalLM": Entry(
        "Kimi Linear", "recurrent", "moonshotai/Kimi-Linear-48B-A3B-Instruct"
    ),
    "Lfm2ForCausalLM": Entry("LFM2", "recurrent", "LiquidAI/LFM2-350M"),
    "Lfm2MoeForCausalLM": Entry("LFM2-MoE", "recurrent", "LiquidAI/LFM2-8B-A1B"),
    "Llama4ForCausalLM": Entry(
        "Llama 4 (text)", "mixture", "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    ),
    "LlamaForCausalLM": Entry("Llama 2 and 3", "dense", "meta-llama/Llama-3.2-1B-Instruct"),
    "MPNetModel": Entry("MPNet", "encoder", "sentence-transformers/all-mpnet-base-v2"),
    "MT5EncoderModel": Entry("mT5, its encoder", "encoder", "google/mt5-base"),
    "Mamba2ForCausalLM": Entry("Mamba 2", "recurrent", "mistralai/Mamba-Codestral-7B-v0.1"),
    "MambaForCausalLM": Entry("Mamba", "recurrent", "state-spaces/mamba-130m-hf"),
    "MellumForCausalLM": Entry("Mellum 2", "mixture", "JetBrains/Mellum2-12B-A2.5B-Base"),
    "MiMoForCausalLM": Entry("MiMo", "dense", "XiaomiMiMo/MiMo-7B-RL"),
    "MiniCPM3ForCausalLM": Entry("MiniCPM 3", "dense", "openbmb/MiniCPM3-4B"),
    "MiniCPMForCausalLM": Entry("MiniCPM", "dense", "openbmb/MiniCPM-2B-sft-bf16"),
    "MiniMaxM2ForCausalLM": Entry("MiniMax M2", "mixture", "MiniMaxAI/MiniMax-M2"),
    "Ministral3ForCausalLM": Entry(
        "Ministral 3 (text)", "dense", "mistralai/Ministral-3-3B-Instruct-2512"
    ),
    "MinistralForCausalLM": Entry("Ministral", "dense", "mistralai/Ministral-8B-Instruct-2410"),
    "MistralForCausalLM": Entry("Mistral", "dense", "mistralai/Mistral-7B-Instruct-v0.3"),
    "MixtralForCausalLM": Entry("Mixtral", "mixture", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    "ModernBertModel": Entry("ModernBERT", "encoder", "nomic-ai/modernbert-embed-base"),
    "MptForCausalLM": Entry("MPT", "dense", "mosaicml/mpt-7b"),
    "NanoChatForCausalLM": Entry("NanoChat", "dense", "karpathy/nanochat-d32"),
    "NemotronForCausalLM": Entry("Nemotron", "dense", "nvidia/Minitron-4B-Base"),
    "NemotronHForCausalLM": Entry(
        "Nemotron-H, Nemotron 3", "recurrent", "nvidia/Nemotron-H-8B-Base-8K"
    ),
    "NomicBertModel": Entry("Nomic Embed", "encoder", "nomic-ai/nomic-embed-text-v1.5"),
    "OPTForCausalLM": Entry("OPT", "dense", "facebook/opt-125m"),
    "Olmo2ForCausalLM": Entry("OLMo 2", "dense", "allenai/OLMo-2-0425-1B-Instruct"),
    "Olmo3ForCausalLM": Entry("OLMo 3", "dense", "allenai/Olmo-3-7B-Instruct"),
    "OlmoForCausalLM": Entry("OLMo", "dense", "allenai/OLMo-1B-hf"),
    "OlmoeForCausalLM": Entry("OLMoE", "mixture", "allenai/OLMoE-1B-7B-0125-Instruct"),
    "PersimmonForCausalLM": Entry("Persimmon", "dense", "adept/persimmon-8b-chat"),
    "Phi3ForCausalLM": Entry("Phi-3 and Phi-4", "dense", "microsoft/Phi-4-mini-instruct"),
    "PhiForCausalLM": Entry("Phi-1 and Phi-2", "dense", "microsoft/phi-2"),
    "PhiMoEForCausalLM": Entry("Phi-3.5 MoE", "mixture", "microsoft/Phi-3.5-MoE-instruct"),
    "PhimoeForCausalLM": Entry(
        "Phi-3.5 MoE, saved by transformers", "mixture", "microsoft/Phi-3.5-MoE-instruct"
    ),
    "Qwen2ForCausalLM": Entry("Qwen2 and Qwen2.5", "dense", "Qwen/Qwen2.5-0.5B-Instruct"),
    "Qwen2MoeForCausalLM": Entry("Qwen2 MoE", "mixture", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
    "Qwen3ForCausalLM": Entry("Qwen3", "dense", "Qwen/Qwen3-0.6B"),
    "Qwen3MoeForCausalLM": Entry("Qwen3 MoE", "mixture", "Qwen/Qwen3-30B-A3B"),
    "Qwen3NextForCausalLM": Entry("Qwen3-Next", "recurrent", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    "Qwen3_5ForCausalLM": Entry("Qwen3.5 (text)", "recurrent", "Qwen/Qwen3.5-0.8B"),
    "Qwen3_5MoeForCausalLM": Entry("Qwen3.5 MoE (text)", "recurrent", "Qwen/Qwen3.5-35B-A3B"),
    "RWKV7ForCausalLM": Entry("RWKV 7", "recurrent", "fla-hub/rwkv7-0.4B-world"),
    "RobertaModel": Entry("RoBERTa", "encoder", "sentence-transformers/all-distilroberta-v1"),
    "SeedOssForCausalLM": Entry("Seed-OSS", "dense", "ByteDance-Seed/Seed-OSS-36B-Instruct"),
    "SmolLM3ForCausalLM": Entry("SmolLM3", "dense", "HuggingFaceTB/SmolLM3-3B"),
    "SolarOpenForCausalLM": Entry("Solar Open", "mixture", "upstage/Solar-Open-100B"),
    "StableLmForCausalLM": Entry("StableLM", "dense", "stabilityai/stablelm-2-1_6b"),
    "Starcoder2ForCausalLM": Entry("StarCoder2", "dense", "bigcode/starcoder2-3b"),
    "T5EncoderModel": Entry("T5, its encoder", "encoder", "sentence-transformers/sentence-t5-base"),
    "UMT5EncoderModel": Entry("UMT5, its encoder", "encoder", "google/umt5-base"),
    "VaultGemmaForCausalLM": Entry("VaultGemma", "dense", "google/vaultgemma-1b"),
    "XLMRobertaModel": Entry("XLM-RoBERTa", "encoder", "intfloat/multilingual-e5-small"),
    "YoutuForCausalLM": Entry("Youtu-LLM", "dense", "tencent/Youtu-LLM-2B"),
}


def catalogue(search: str = "") -> Iterator[Row]:
    """The architectures of the registry by title, those that a search word occurs in."""
    rows = []
    for architecture, line in ARCHITECTURES.items():
        entry = ENTRIES[architecture]
        gguf = tuple(
            name for name, known in GGUF_ARCHITECTURES.items() if known.hf_class == architecture
        )
        rows.append(Row(architecture, *entry, line.backends, gguf))
    for row in sorted(rows, key=lambda row: row.title.lower()):
        if search.lower() in " ".join((*row[:4], *row.gguf)).lower():
            yield row
