"""Open sets that a flag chooses from: name → module and class, imported when chosen.

A new member is one line here; the flag's choices and help follow.
"""

from __future__ import annotations

#: --backend. A class takes the arguments of `kernels.backend.open_backend`.
BACKENDS: dict[str, tuple[str, str]] = {
    "cpu": ("galley.kernels.cpu", "CpuBackend"),
    "reference": ("galley.kernels.reference", "ReferenceBackend"),
}

#: Architectures without a head, each of whose tokens sees the whole sequence. With a head
#: (`architectures.split_architecture`) they are called otherwise.
ENCODERS = frozenset(
    {
        "AlbertModel",
        "BertModel",
        "CamembertModel",
        "DebertaV2Model",
        "DistilBertModel",
        "ElectraModel",
        "EuroBertModel",
        "GteModel",
        "JinaBertModel",
        "MPNetModel",
        "MT5EncoderModel",
        "ModernBertModel",
        "NomicBertModel",
        "RobertaModel",
        "T5EncoderModel",
        "UMT5EncoderModel",
        "XLMRobertaModel",
    }
)

#: --quantization of checkpoints that are not quantized (`quant.online`).
ONLINE_METHODS = (
    "bitsandbytes",
    "experts_int8",
    "fp8",
    "fp8_per_channel",
    "fp8_per_tensor",
    "int4",
    "int8",
    "int8_per_channel_weight_only",
)
#: vLLM's other names of methods that checkpoints are quantized by.
METHOD_ALIASES = {
    "auto_awq": "awq",
    "auto_gptq": "gptq",
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
}

#: --load-format: the class of its checkpoint, which has `open(source)`.
LOAD_FORMATS: dict[str, tuple[str, str]] = {
    "safetensors": ("galley.loader.safetensors", "SafetensorsCheckpoint"),
    "pt": ("galley.loader.torch_zip", "TorchCheckpoint"),
    "mistral": ("galley.loader.mistral", "MistralCheckpoint"),
    "gguf": ("galley.loader.gguf_checkpoint", "GGUFCheckpoint"),
    "dummy": ("galley.models.dummy", "DummyCheckpoint"),
}

#: vLLM's other names of ways to read the same files → the load format that reads them here: mapped,
#: by several threads.
LOAD_FORMAT_ALIASES = {
    "hf": "auto",
    "fastsafetensors": "safetensors",
    "runai_streamer": "safetensors",
    "instanttensor": "safetensors",
    "npcache": "pt",
}
_CONVERT = "save the model as safetensors and use --load-format safetensors."
#: vLLM's other load formats → what would run.
REFUSED_LOAD_FORMATS: dict[str, str] = {
    "sharded_state": _CONVERT,
    "runai_streamer_sharded": _CONVERT,
    "tensorizer": _CONVERT,
    "modelexpress": _CONVERT,
    "ipc_cache": _CONVERT,
    "bitsandbytes": "--quantization bitsandbytes quantizes while loading.",
}

#: Method of --speculative-config: the function that makes its proposer, of settings and target.
PROPOSERS: dict[str, tuple[str, str]] = {
    "ngram": ("galley.spec.ngram", "make"),
    "suffix": ("galley.spec.suffix", "make"),
    "draft_model": ("galley.runner.draft_model", "make"),
    "medusa": ("galley.runner.draft_heads", "make"),
    "mlp_speculator": ("galley.runner.draft_heads", "make"),
    "eagle": ("galley.runner.draft_heads", "make"),
    "eagle3": ("galley.runner.draft_heads", "make"),
    "mtp": ("galley.runner.draft_heads", "make"),
    "custom_class": ("galley.spec.custom", "make"),
}

#: Method → the function that describes its heads (`models.draft_heads`).
DRAFT_HEADS: dict[str, tuple[str, str]] = {
    "medusa": ("galley.models.medusa", "medusa"),
    "mlp_speculator": ("galley.models.mlp_speculator", "mlp_speculator"),
    "eagle": ("galley.models.eagle", "eagle"),
    "eagle3": ("galley.models.eagle", "eagle3"),
    "mtp": ("galley.models.mtp", "mtp"),
}
