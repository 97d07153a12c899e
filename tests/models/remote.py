"""Reference models of families whose code is not in transformers.

Each is one of transformers' models that computes the same, given the tensor names and config keys
of the family's published checkpoints and modeling code (on the hub: internlm/internlm2-chat-7b,
internlm/internlm3-8b-instruct, baichuan-inc/Baichuan2-7B-Chat and -13B-Chat,
openbmb/MiniCPM-2B-sft-bf16, LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct, jinaai/jina-bert-implementation,
nvidia/Llama-3_3-Nemotron-Super-49B-v1_5, inclusionAI/Ling-mini-2.0).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

State = dict[str, torch.Tensor]


@dataclass
class Remote:
    """A family's version of a model of transformers.

    Attributes:
        architecture: of its config.json.
        rename: its state dict, of the model's.
        keys: config keys to set; None = removed.
        adapt: changes how the model computes.
    """

    architecture: str
    rename: Callable[[State], State] = dict
    keys: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[torch.nn.Module], None] = lambda model: None

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        self.adapt(model)
        return type(self.architecture, (_Wrapped,), {})(model, self)


class _Wrapped(torch.nn.Module):
    """Computes as `inner`, and is saved as the family's checkpoints are."""

    def __init__(self, inner: torch.nn.Module, remote: Remote) -> None:
        super().__init__()
        self.inner, self._remote = inner, remote
        self.config = _Config(inner.config, remote)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    @property
    def base_model(self) -> torch.nn.Module:
        return self.inner.base_model

    def state_dict(self, *args: Any, **kwargs: Any) -> State:
        return self._remote.rename(self.inner.state_dict())

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.config.to_dict()))
        state = {name: t.contiguous() for name, t in self.state_dict().items()}
        if self.config.to_dict()["tie_word_embeddings"]:
            state.pop("lm_head.weight", None)
        save_file(state, folder / "model.safetensors")


class _Config:
    def __init__(self, inner: Any, remote: Remote) -> None:
        self._inner, self._remote = inner, remote

    def to_dict(self) -> dict[str, Any]:
        values = {**self._inner.to_dict(), **self._remote.keys}
        kept = {k: v for k, v in values.items() if k not in self._remote.keys or v is not None}
        return {**kept, "architectures": [self._remote.architecture], "model_type": "remote"}


def renamed(*pairs: tuple[str, str]) -> Callable[[State], State]:
    """Patterns of names and what takes their place."""

    def rename(state: State) -> State:
        result = {}
        for name, tensor in state.items():
            for pattern, new in pairs:
                name = re.sub(pattern, new, name)
            result[name] = tensor
        return result

    return rename


def fused(name: str, groups: int = 1) -> Callable[[State], State]:
    """q_proj, k_proj and v_proj as one tensor, which holds them by groups of heads."""

    def fuse(state: State) -> State:
        result = dict(state)
        for key in [key for key in state if ".q_proj." in key]:
            parts = [
                result.pop(key.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")
            ]
            tail = parts[0].shape[1:]
            by_group = [part.reshape(groups, -1, *tail) for part in parts]
            result[key.replace("q_proj", name)] = torch.cat(by_group, 1).reshape(-1, *tail)
        return result

    return fuse


def with_alibi(model: torch.nn.Module) -> None:
    """No rotation; scores fall with distance, at the slopes of Baichuan's `_get_interleave`."""
    model.model.rotary_emb = _NoRotation()
    ALL_ATTENTION_FUNCTIONS["alibi"] = _alibi_attention
    model.config._attn_implementation = "alibi"


class _Gated(torch.nn.Module):
    """GLU of a layer of Jina BERT up to its last matrix."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gated_layers = torch.nn.Linear(
            config.hidden_size, 2 * config.intermediate_size, bias=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated, other = self.gated_layers(x).chunk(2, -1)
        return torch.nn.functional.gelu(gated) * other


def as_jina_bert(model: torch.nn.Module) -> None:
    """No positions; scores fall with distance on both sides; gated feed-forward blocks."""
    body = model.base_model
    torch.nn.init.zeros_(body.embeddings.position_embeddings.weight)
    for layer in body.encoder.layer:
        layer.intermediate = _Gated(model.config)
    ALL_ATTENTION_FUNCTIONS["alibi"] = _alibi_attention
    model.config._attn_implementation = "alibi"


class _NoRotation(torch.nn.Module):
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        shape = (*position_ids.shape, 16)
        return torch.ones(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)


def _slopes(n: int) -> list[float]:
    def of_power(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(n.bit_length() - 1 - 3)))
        return [start * start**i for i in range(n)]

    if n & (n - 1) == 0:
        return of_power(n)
    below = 1 << (n.bit_length() - 1)
    return of_power(below) + _slopes(2 * below)[0::2][: n - below]


def _alibi_attention(
    module: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Any,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    n = torch.arange(q.shape[2])
    distance = n[:, None] - n[None]
    bias = -torch.tensor(_slopes(q.shape[1]))[:, None, None] * distance.abs()
    scores = q @ k.transpose(2, 3) * scaling + bias
    if module.is_causal:
        scores = scores.masked_fill(distance < 0, float("-inf"))
    out = scores.float().softmax(-1).to(v.dtype) @ v
    return out.transpose(1, 2), None


INTERNLM2 = renamed(
    (r"embed_tokens", "tok_embeddings"),
    (r"lm_head", "output"),
    (r"self_attn\.o_proj", "attention.wo"),
    (r"self_attn", "attention"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
)
EXAONE = renamed(
    (r"model\.embed_tokens", "transformer.wte"),
    (r"model\.norm", "transformer.ln_f"),
    (r"model\.layers\.", "transformer.h."),
    (r"self_attn\.o_proj", "attn.attention.out_proj"),
    (r"self_attn", "attn.attention"),
    (r"mlp\.gate_proj", "mlp.c_fc_0"),
    (r"mlp\.up_proj", "mlp.c_fc_1"),
    (r"mlp\.down_proj", "mlp.c_proj"),
    (r"input_layernorm", "ln_1"),
    (r"post_attention_layernorm", "ln_2"),
)


JINA_BERT = Remote(
    "JinaBertModel",
    lambda state: {
        name: tensor
        for name, tensor in renamed(
            (r"intermediate\.gated", "mlp.gated"),
            (r"(layer\.\d+)\.output\.dense", r"\1.mlp.wo"),
            (r"(layer\.\d+)\.output\.LayerNorm", r"\1.mlp.layernorm"),
        )(state).items()
        if "position_embeddings" not in name
    },
    {"position_embedding_type": "alibi", "feed_forward_type": "geglu"},
    as_jina_bert,
)


def phimoe_names(state: State) -> State:
    """The tensors of Phi-3.5-MoE as published: each expert's by itself."""
    result = {}
    for name, tensor in state.items():
        name = name.replace(".mlp.router.", ".block_sparse_moe.gate.")
        stem = name.partition(".mlp.experts.")[0] + ".block_sparse_moe.experts"
        if name.endswith(".experts.gate_up_proj"):
            for i, both in enumerate(tensor):
                gate, up = both.chunk(2)
                result |= {f"{stem}.{i}.w1.weight": gate, f"{stem}.{i}.w3.weight": up}
        elif name.endswith(".experts.down_proj"):
            result |= {f"{stem}.{i}.w2.weight": down for i, down in enumerate(tensor)}
        else:
            result[name] = tensor
    return result


def _decilm_sizes(model: torch.nn.Module) -> None:
    """The blocks that DECILM lacks add zeros, as do the columns beyond its smaller MLP."""
    layers: Any = model.base_model.layers
    with torch.no_grad():
        layers[1].self_attn.o_proj.weight.zero_()
        layers[2].mlp.down_proj.weight.zero_()
        layers[1].mlp.down_proj.weight[:, 80:] = 0


def _decilm_names(state: State) -> State:
    missing = ("1.self_attn", "1.input_layernorm", "2.mlp", "2.post_attention_layernorm")
    result = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(tuple(f"model.layers.{part}." for part in missing))
    }
    for part in ("gate_proj", "up_proj"):
        name = f"model.layers.1.mlp.{part}.weight"
        result[name] = result[name][:80]
    name = "model.layers.1.mlp.down_proj.weight"
    result[name] = result[name][:, :80]
    return result


#: Of an intermediate size of 256: one layer whole, one without attention, one without an MLP.
DECILM = Remote(
    "DeciLMForCausalLM",
    _decilm_names,
    {
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"intermediate_size": 80}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True, "ffn_mult": None}},
        ],
    },
    _decilm_sizes,
)


def _bailing_names(state: State) -> State:
    state = renamed(
        (r"embed_tokens", "word_embeddings"),
        (r"self_attn\.o_proj", "attention.dense"),
        (r"self_attn\.q_norm", "attention.query_layernorm"),
        (r"self_attn\.k_norm", "attention.key_layernorm"),
        (r"self_attn", "attention"),
        (r"e_score_correction_bias", "expert_bias"),
    )(fused("query_key_value")(state))
    result = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".experts.")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        if kind not in parts:
            result[name] = tensor
            continue
        for i, matrix in enumerate(tensor):
            cut = matrix.chunk(len(parts[kind]))
            for part, own in zip(parts[kind], cut, strict=True):
                result[f"{stem}.experts.{i}.{part}.weight"] = own
    return result


#: Computes as GLM-4-MoE with norms of q and k.
BAILING = Remote(
    "BailingMoeV2ForCausalLM",
    _bailing_names,
    {
        "num_experts": 8,
        "num_shared_experts": 2,
        "n_routed_experts": None,
        "num_local_experts": None,
        "n_shared_experts": None,
        "use_qk_norm": True,
        "use_qkv_bias": True,
        "attention_bias": None,
    },
)
