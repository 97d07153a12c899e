"""RWKV 7 in plain PyTorch, from the formulas of "RWKV-7 Goose" (arXiv 2503.14456), with the tensor
names and config keys of flash-linear-attention's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG: dict[str, Any] = {
    "architectures": ["RWKV7ForCausalLM"],
    "model_type": "rwkv7",
    "vocab_size": 131,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "head_dim": 64,
    "decay_low_rank_dim": 12,
    "a_low_rank_dim": 8,
    "v_low_rank_dim": 4,
    "gate_low_rank_dim": 20,
    "hidden_act": "sqrelu",
    "norm_eps": 1e-5,
    "norm_bias": True,
    "norm_first": True,
    "tie_word_embeddings": False,
}


def before(x: Tensor) -> Tensor:
    """The vector of the token before, zeros for the first: x [B, T, H]."""
    return F.pad(x, (0, 0, 1, -1))


class LoRA(nn.Module):
    def __init__(self, hidden: int, rank: int, activation: nn.Module, bias: bool = True) -> None:
        super().__init__()
        down, up = nn.Linear(hidden, rank, bias=False), nn.Linear(rank, hidden, bias=bias)
        self.lora = nn.Sequential(down, activation, up)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


class TimeMix(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        h, self.size = CONFIG["hidden_size"], CONFIG["head_dim"]
        for name in "rwkvag":
            setattr(self, f"x_{name}", nn.Parameter(torch.empty(1, 1, h)))
        self.k_k, self.k_a = nn.Parameter(torch.empty(h)), nn.Parameter(torch.empty(h))
        self.r_k = nn.Parameter(torch.empty(h // self.size, self.size))
        for name in "rkvo":
            setattr(self, f"{name}_proj", nn.Linear(h, h, bias=False))
        self.w_lora = LoRA(h, CONFIG["decay_low_rank_dim"], nn.Tanh())
        self.a_lora = LoRA(h, CONFIG["a_low_rank_dim"], nn.Identity())
        self.g_lora = LoRA(h, CONFIG["gate_low_rank_dim"], nn.Sigmoid(), bias=False)
        if not first:
            self.v_lora = LoRA(h, CONFIG["v_low_rank_dim"], nn.Identity())
        self.g_norm = nn.GroupNorm(h // self.size, h, eps=self.size * CONFIG["norm_eps"])

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        change = before(x) - x
        r, w, k, v, a, g = (x + change * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k = self.r_proj(r), self.k_proj(k)
        decay = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(self.w_lora(w)))
        mixed, v = v, self.v_proj(v)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v_lora(mixed))
        a, g = torch.sigmoid(self.a_lora(a)), self.g_lora(g)
        heads = (*x.shape[:2], -1, self.size)
        removal = F.normalize((k * self.k_k).view(heads), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, decay, k, value, rate = (t.view(heads) for t in (r, decay, k, v, a))
        state = x.new_zeros(x.shape[0], r.shape[2], self.size, self.size)
        out = []
        for t in range(x.shape[1]):
            # S [value, key]: S diag(w) - S u (a u)ᵀ + v kᵀ
            u = removal[:, t]
            gone = (state @ u[..., None]) @ (rate[:, t] * u)[..., None, :]
            state = state * decay[:, t, :, None] - gone + value[:, t, ..., None] @ k[:, t, :, None]
            out.append((state @ r[:, t, ..., None])[..., 0])
        y = torch.stack(out, 1).flatten(2)
        y = self.g_norm(y.flatten(0, 1)).view_as(y)
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * value).flatten(2)
        return self.o_proj(y * g), v_first


class ChannelMix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        h, n = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.x_k = nn.Parameter(torch.empty(h))
        self.key, self.value = nn.Linear(h, n, bias=False), nn.Linear(n, h, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(F.relu(self.key(x + (before(x) - x) * self.x_k)) ** 2)


class Layer(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        h, eps = CONFIG["hidden_size"], CONFIG["norm_eps"]
        if first:
            self.pre_norm = nn.LayerNorm(h, eps=eps)
        self.attn_norm, self.ffn_norm = nn.LayerNorm(h, eps=eps), nn.LayerNorm(h, eps=eps)
        self.attn, self.ffn = TimeMix(first), ChannelMix()

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        if v_first is None:
            x = self.pre_norm(x)
        y, v_first = self.attn(self.attn_norm(x), v_first)
        x = x + y
        return x + self.ffn(self.ffn_norm(x)), v_first


class RWKV7ForCausalLM(nn.Module):
    """As much of a model of transformers as the tests use."""

    def __init__(self) -> None:
        super().__init__()
        h = CONFIG["hidden_size"]
        self.config = SimpleNamespace(**CONFIG, to_dict=lambda: dict(CONFIG))
        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(CONFIG["vocab_size"], h)
        layers = [Layer(i == 0) for i in range(CONFIG["num_hidden_layers"])]
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = nn.LayerNorm(h, eps=CONFIG["norm_eps"])
        self.lm_head = nn.Linear(h, CONFIG["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Any:
        x, v_first = self.model.embeddings(ids), None
        for layer in self.model.layers:
            x, v_first = layer(x, v_first)
        return SimpleNamespace(logits=self.lm_head(self.model.norm(x)))

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        save_file(self.state_dict(), folder / "model.safetensors")
