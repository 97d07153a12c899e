"""`ModelInfo`: the declarations of a checkpoint, independent of its file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from galley.config.architectures import Head
from galley.config.pooling import PoolingSettings
from galley.config.registries import ENCODERS

#: Encoders that tell the two texts of a pair apart.
_WITH_SEGMENTS = ("AlbertModel", "BertModel", "ElectraModel")

#: --model-impl; "vllm" means "galley".
ModelImpl = Literal["auto", "galley", "vllm", "transformers"]


@dataclass(frozen=True)
class ModelInfo:
    """Filled by the loader from config.json or GGUF metadata; plain data, crosses processes.

    Attributes:
        architecture: Hugging Face class name, e.g. "LlamaForCausalLM" (GGUF's "llama" maps to it).
        hf_config: the checkpoint's config in Hugging Face's keys (for GGUF: translated), which the
            model family reads with typed reads and refuses what it does not implement.
        vocab_size: number of token ids; sizes of layers are for the family to read.
        max_position: longest sequence that the checkpoint supports, after rope scaling.
        dtype: the checkpoint's main dtype: "bfloat16", "float16", "float32" or a GGUF type "Q4_1".
        quantization: None, "awq", "compressed-tensors", "gguf", "gptq" …
        online: how weights are quantised while they are loaded (`ONLINE_METHODS`), if the
            checkpoint is not; None = not at all.
        bos_token_id, eos_token_ids: from config and generation_config (or GGUF metadata).
        generation: defaults of generation_config.json (temperature, top_p, top_k,
            repetition_penalty, min_p, max_new_tokens), only those present.
        chat_template: the checkpoint's jinja template, if it carries one.
        source: resolved path of the directory or file.
        model_impl: the implementation of the model that --model-impl asks for.
        trust_remote_code: the implementation of transformers may run code of the checkpoint.
        head: that pools, on top of the model of `architecture`; None: no other than its own.
        pooling: how its vectors are made, as it declares; None: it declares nothing.
    """

    architecture: str
    hf_config: dict[str, Any]
    vocab_size: int
    max_position: int
    dtype: str
    quantization: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    source: str = ""
    model_impl: ModelImpl = "auto"
    trust_remote_code: bool = False
    pooling: PoolingSettings | None = None
    online: str | None = None
    head: Head | None = None

    @property
    def has_segments(self) -> bool:
        """Whether the two texts of a pair are told apart: the second one's tokens have ids behind
        the vocabulary, `vocab_size` further."""
        types = self.hf_config.get("type_vocab_size", 2)
        return self.architecture in _WITH_SEGMENTS and self.head == "sequence" and types == 2

    @property
    def is_encoder(self) -> bool:
        """Whether it computes a text in one piece, each token seeing all others, and has no
        head that text could be generated with."""
        if self.architecture in ENCODERS:
            return True
        return self.head is not None and sees_all(self.hf_config)


def sees_all(config: Mapping[str, Any]) -> bool:
    """Whether a decoder's config.json says that each token sees all others."""
    return config.get("use_bidirectional_attention") is True or config.get("is_causal") is False
