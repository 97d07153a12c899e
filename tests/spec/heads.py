"""Tiny models with draft heads, written as checkpoints, and a float32 reference in PyTorch of both.

A model whose layers do little maps a token to the next one, more or less; a head with the same
embeddings then guesses right often, but not always.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tests.models.checkpoints import StateDict

HIDDEN, VOCAB, LAYERS, WIDTH = 64, 61, 4, 96
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}
#: Of the last token alone: guesses at the tokens behind it, one for each place.
Guess = Callable[[list[int], int], list[int]]


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.detach().contiguous().float() for k, v in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


def llama(seed: int = 0, family: str = "Llama", **further: Any) -> torch.nn.Module:
    """A model of transformers, random but for what the module says."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**CONFIG, **further})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(0, 0.05 if "layers" in name else 0.5)
    return model


def saved(
    model: torch.nn.Module,
    folder: Path,
    architecture: str | None = None,
    more: dict[str, Tensor] | None = None,
) -> Path:
    """A checkpoint of a transformers model; `more` tensors that it does not have itself."""
    config = {**model.config.to_dict(), "architectures": [architecture or type(model).__name__]}
    config |= {"eos_token_id": None, "bos_token_id": None}
    return write(folder, config, {**stored(model), **(more or {})})


def stored(model: torch.nn.Module) -> dict[str, Tensor]:
    """Tensors under the names of files."""
    return {name: torch.from_numpy(array) for name, array in StateDict(model).arrays.items()}


#: Of each model the last tokens that it computed, and their states.
_COMPUTED: MutableMapping[torch.nn.Module, tuple[list[int], tuple[Tensor, ...]]] = (
    WeakKeyDictionary()
)


def states(model: torch.nn.Module, tokens: Sequence[int]) -> tuple[Tensor, ...]:
    """Inputs of all layers, then the result of the final norm, [n, H] each. Those of the beginning
    of the tokens before are a part of theirs.
    """
    tokens = list(tokens)
    computed, found = _COMPUTED.get(model, ([], ()))
    if len(computed) < len(tokens) or computed[: len(tokens)] != tokens:
        with torch.inference_mode():
            out = model(torch.tensor([tokens]), output_hidden_states=True)
        found = tuple(hidden[0] for hidden in out.hidden_states)
        _COMPUTED[model] = tokens, found
    return tuple(hidden[: len(tokens)] for hidden in found)


def rms(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


class Random:
    """Named random tensors."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, name: str, *shape: int, std: float = 0.05) -> Tensor:
        values = torch.randn(shape, generator=self._generator) * std
        return self.keep(name, values)

    def norm(self, name: str, size: int) -> Tensor:
        return self.keep(name, 0.8 + 0.4 * torch.rand(size, generator=self._generator))

    def keep(self, name: str, values: Tensor) -> Tensor:
        self.tensors[name] = values
        return values


def medusa(model: torch.nn.Module, folder: Path, own_names: bool) -> tuple[Path, Guess]:
    """Three heads, each fitted to what follows the hidden states of some texts."""
    heads, made = 3, Random(1)
    blocks, scores = [], []
    with torch.inference_mode():
        texts = model.generate(
            torch.arange(VOCAB)[:, None], max_new_tokens=24, do_sample=False, pad_token_id=0
        )
    hidden = torch.stack([states(model, text.tolist())[-1] for text in texts])
    for i in range(heads):
        names = (
            (f"{i}.0.linear", f"{i}.1") if own_names else (f"blocks.{i}.layers.0", f"lm_heads.{i}")
        )
        block = made.matrix(f"{names[0]}.weight", HIDDEN, HIDDEN)
        bias = made.matrix(f"{names[0]}.bias", HIDDEN) if own_names else torch.zeros(HIDDEN)
        inputs = hidden[:, : -2 - i]
        inputs = (inputs + functional.silu(inputs @ block.T + bias)).reshape(-1, HIDDEN)
        wanted = functional.one_hot(texts[:, 2 + i :].reshape(-1), VOCAB).float()
        fit = torch.linalg.lstsq(inputs, wanted).solution.T
        scores.append(made.keep(f"{names[1]}.weight", fit + 0.02 * torch.randn_like(fit)))
        blocks.append((block, bias))
    config: dict[str, Any] = {"model_type": "medusa", "hidden_size": HIDDEN}
    if own_names:
        config |= {"medusa_num_heads": heads, "medusa_num_layers": 1}
    else:
        config |= {"num_heads": heads, "num_hidden_layers": 1, "vocab_size": VOCAB}

    def guess(tokens: list[int], most: int) -> list[int]:
        last = states(model, tokens[:-1])[-1][-1]
        guesses = []
        for (block, bias), score in list(zip(blocks, scores, strict=True))[:most]:
            guesses.append(int((score @ (last + functional.silu(block @ last + bias))).argmax()))
        return guesses

    return write(folder, config, made.tensors), guess


def mlp_speculator(model: torch.nn.Module, folder: Path, tied: bool) -> tuple[Path, Guess]:
    """Three heads whose states are mostly the embedding of the token before."""
    heads, made = 3, Random(2)
    embedding, score = model.model.embed_tokens.weight, model.lm_head.weight
    kept: dict[str, list[Tensor]] = {"emb": [], "proj": [], "head": [], "ln": [], "shift": []}
    for i in range(heads):
        if tied and i:
            for name in ("emb", "head", "ln", "shift"):
                kept[name].append(kept[name][0])
        else:
            kept["emb"].append(made.keep(f"speculator.emb.{i}.weight", embedding.detach().clone()))
            kept["head"].append(made.keep(f"speculator.head.{i}.weight", score.detach().clone()))
            kept["ln"].append(made.norm(f"speculator.ln.{i}.weight", HIDDEN))
            kept["shift"].append(made.matrix(f"speculator.ln.{i}.bias", HIDDEN))
        if tied and i == 2:
            kept["proj"].append(kept["proj"][1])
        else:
            kept["proj"].append(made.matrix(f"speculator.proj.{i}.weight", HIDDEN, HIDDEN, std=0.1))
    config = {
        "model_type": "mlp_speculator",
        "n_predict": heads,
        "emb_dim": HIDDEN,
        "inner_dim": HIDDEN,
        "vocab_size": VOCAB,
        "tie_weights": tied,
        "scale_input": tied,
    }
    of_state = 0.5 ** (0.5 / heads)
    weight = ((1 - of_state**2) * (HIDDEN / 2)) ** 0.5 / of_state

    def guess(tokens: list[int], most: int) -> list[int]:
        state = states(model, tokens[:-1])[-1][-1]
        if tied:
            state = rms(state) / 2**0.5
        guesses, token = [], tokens[-1]
        for i in range(min(heads, most)):
            state = kept["proj"][i] @ state + weight * kept["emb"][i][token]
            state = functional.gelu(rms(state, kept["ln"][i]) + kept["shift"][i])
            token = int((kept["head"][i] @ state).argmax())
            guesses.append(token)
        return guesses

    return write(folder, config, made.tensors), guess


class Layer:
    """A layer like Llama's: attention over all given rows, rotated by position, and a gated MLP.

    Args:
        columns: that its attention reads.
    """

    def __init__(
        self, made: Random, prefix: str, columns: int = HIDDEN, bias: bool = False
    ) -> None:
        self.heads, self.kv_heads, self.size = 4, 2, HIDDEN // 4
        kv = self.kv_heads * self.size
        shapes = {"q": (HIDDEN, columns), "k": (kv, columns), "v": (kv, columns)}
        self.w = {
            n: made.matrix(f"{prefix}self_attn.{n}_proj.weight", *s) for n, s in shapes.items()
        }
        self.b = {
            n: made.matrix(f"{prefix}self_attn.{n}_proj.bias", s[0]) if bias else torch.zeros(s[0])
            for n, s in shapes.items()
        }
        self.out = made.matrix(f"{prefix}self_attn.o_proj.weight", HIDDEN, HIDDEN)
        self.gate = made.matrix(f"{prefix}mlp.gate_proj.weight", WIDTH, HIDDEN)
        self.up = made.matrix(f"{prefix}mlp.up_proj.weight", WIDTH, HIDDEN)
        self.down = made.matrix(f"{prefix}mlp.down_proj.weight", HIDDEN, WIDTH)
        self.mlp_norm = made.norm(f"{prefix}post_attention_layernorm.weight", HIDDEN)

    def attend(self, x: Tensor) -> Tensor:
        n, d = len(x), self.size
        q, k, v = (
            (x @ self.w[name].T + self.b[name]).reshape(n, -1, d).transpose(0, 1) for name in "qkv"
        )
        frequencies = 10000.0 ** (-torch.arange(0, d, 2) / d)
        angles = torch.outer(torch.arange(n), frequencies).repeat(1, 2)

        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return y * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

        k, v = (y.repeat_interleave(self.heads // self.kv_heads, 0) for y in (turned(k), v))
        out = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        return out.transpose(0, 1).reshape(n, HIDDEN) @ self.out.T

    def mlp(self, x: Tensor) -> Tensor:
        return (functional.silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T

    def __call__(self, hidden: Tensor, norm: Tensor | None) -> Tensor:
        hidden = hidden + self.attend(hidden if norm is None else rms(hidden, norm))
        return hidden + self.mlp(rms(hidden, self.mlp_norm))


def chained(
    first: Callable[[list[int]], Tensor],
    passes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    embedding: Tensor,
    token_of: Callable[[int], int] = lambda i: i,
) -> Guess:
    """A guess by a head with a cache, computed without one: all positions at each pass.

    Args:
        first: tokens → inputs [n, H] of the positions of all but the last token.
        passes: inputs and embeddings of the tokens behind → hidden states and logits of the last.
    """

    def guess(tokens: list[int], most: int) -> list[int]:
        given, known = first(tokens[:-1]), list(tokens)
        for _ in range(most):
            hidden, logits = passes(given, embedding[torch.tensor(known[1:])])
            known.append(token_of(int(logits.argmax())))
            given = torch.cat((given, hidden[-1:]))
        return known[len(tokens) :]

    return guess


def eagle(model: torch.nn.Module, folder: Path, own_embedding: bool) -> tuple[Path, Guess]:
    """A layer that hardly changes the embedding of the last token."""
    made = Random(3)
    embedding, score = model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
    join = torch.cat((torch.eye(HIDDEN), 0.05 * torch.eye(HIDDEN)), 1)
    made.keep("fc.weight", join)
    layer = Layer(made, "layers.0.")
    if own_embedding:
        embedding = made.keep("embed_tokens.weight", embedding + 0.1 * torch.randn(VOCAB, HIDDEN))
    config = {**CONFIG, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLM"]}

    def passes(given: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        hidden = layer(torch.cat((token, given), -1) @ join.T, None)
        return hidden, score @ hidden[-1]

    guess = chained(lambda tokens: states(model, tokens)[-1], passes, embedding)
    return write(folder, config, made.tensors), guess


def eagle3(model: torch.nn.Module, folder: Path, mapped: bool) -> tuple[Path, Guess]:
    """Joins the inputs of three layers; with `mapped`, a vocabulary of every second token."""
    made = Random(4)
    embedding, score = model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
    read = [1, 2, 3]
    join = made.matrix("fc.weight", HIDDEN, 3 * HIDDEN, std=0.02)
    layer = Layer(made, "midlayer.", 2 * HIDDEN)
    # The embedding reaches the residual stream through attention alone: here, through each
    # token's own value, because its query and key are alike.
    layer.w["v"].copy_(
        torch.cat((torch.eye(HIDDEN // 2, HIDDEN), torch.zeros(HIDDEN // 2, HIDDEN)), 1)
    )
    layer.w["q"][:, HIDDEN:] = 0
    layer.w["k"][:, HIDDEN:] = 0
    layer.w["k"] *= 40
    layer.w["q"].copy_(layer.w["k"].reshape(2, 1, -1, 2 * HIDDEN).repeat(1, 2, 1, 1).flatten(0, 2))
    half = layer.size
    for head in range(4):  # value head 0 for query heads 0 and 1, 1 for 2 and 3
        start = (head // 2) * half
        layer.out[:, head * half : (head + 1) * half] = (
            8 * torch.eye(HIDDEN)[:, start : start + half]
        )
    token_norm = made.norm("midlayer.input_layernorm.weight", HIDDEN)
    hidden_norm = made.norm("midlayer.hidden_norm.weight", HIDDEN)
    norm = made.norm("norm.weight", HIDDEN)
    config = {
        **CONFIG,
        "num_hidden_layers": 1,
        "architectures": ["LlamaForCausalLMEagle3"],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": read},
        "norm_before_residual": not mapped,
    }
    if mapped:
        kept = torch.arange(0, VOCAB, 2)
        score = made.keep("lm_head.weight", score[kept])
        config["draft_vocab_size"] = len(kept)

    def first(tokens: list[int]) -> Tensor:
        inputs = states(model, tokens)
        return torch.cat([inputs[i] for i in read], -1) @ join.T

    def passes(given: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        normed = rms(given, hidden_norm)
        hidden = given if mapped else normed
        hidden = hidden + layer.attend(torch.cat((rms(token, token_norm), normed), -1))
        hidden = hidden + layer.mlp(rms(hidden, layer.mlp_norm))
        return hidden, score @ rms(hidden[-1], norm)

    guess = chained(first, passes, embedding, (lambda i: 2 * i) if mapped else (lambda i: i))
    path = write(folder, config, made.tensors)
    if mapped:
        tensors = {**made.tensors, "d2t": kept - torch.arange(len(kept)),
                   "t2d": torch.arange(VOCAB) % 2 == 0}  # fmt: skip
        save_file(tensors, path / "model.safetensors")
    return path, guess


#: Of recurrent layers with attention in between, all with experts.
QWEN_NEXT = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
#: Family of MTP heads: classes of transformers, further config, names and order of `models.mtp`.
MTP: dict[str, tuple[str, dict[str, Any], str, tuple[str, str, str, str]]] = {
    "DeepseekV3ForCausalLM": (
        "DeepseekV3",
        {
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "num_key_value_heads": 4,
        },
        "model.layers.{}.",
        ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    ),
    "Glm4MoeForCausalLM": (
        "Glm4Moe",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "head_dim": 16,
        },
        "model.layers.{}.",
        ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    ),
    "MiMoForCausalLM": (
        "Qwen2",
        {},
        "model.mtp_layers.0.",
        ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
    ),
    "Qwen3NextForCausalLM": (
        "Qwen3Next",
        QWEN_NEXT,
        "mtp.layers.0.",
        ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    ),
}


#: Whose next draft reads the hidden state before the norm.
UNNORMED = ("DeepseekV3ForCausalLM", "Glm4MoeForCausalLM")


def mtp(architecture: str, folder: Path) -> tuple[torch.nn.Module, Path, Guess]:
    """A model whose checkpoint has a further layer, which hardly changes the token's embedding."""
    family, further, prefix, (token_name, hidden_name, project_name, norm_name) = MTP[architecture]
    model = llama(family=family, **further)
    of_block = {**further, "num_hidden_layers": 1}
    if "layer_types" in further:
        of_block["layer_types"] = ["full_attention"]
    block = llama(1, family=family, **of_block)
    made, prefix = Random(6), prefix.format(LAYERS)
    is_qwen = family == "Qwen3Next"
    plus = 1.0 if is_qwen else 0.0
    layer = {
        prefix + name.removeprefix("model.layers.0."): tensor
        for name, tensor in stored(block).items()
        if name.startswith("model.layers.0.")
    }
    block.model.norm = torch.nn.Identity()
    token_first = architecture != "MiMoForCausalLM"
    prefix = "mtp." if is_qwen else prefix
    token_norm, hidden_norm, norm = (
        made.norm(f"{prefix}{name}.weight", HIDDEN) + plus
        for name in (token_name, hidden_name, norm_name)
    )
    pair = [torch.eye(HIDDEN), 0.05 * torch.eye(HIDDEN)]
    project = made.keep(
        f"{prefix}{project_name}.weight", torch.cat(pair if token_first else pair[::-1], 1)
    )

    def passes(given: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        both = [rms(token, token_norm), rms(given, hidden_norm)]
        x = torch.cat(both if token_first else both[::-1], -1) @ project.T
        with torch.inference_mode():
            hidden = block.model(inputs_embeds=x[None]).last_hidden_state[0]
        normed = rms(hidden, norm)
        return (
            hidden if architecture in UNNORMED else normed
        ), model.lm_head.weight.detach() @ normed[-1]

    embedding = model.model.embed_tokens.weight.detach()
    guess = chained(lambda tokens: states(model, tokens)[-1], passes, embedding)
    return model, saved(model, folder, architecture, {**layer, **made.tensors}), guess


def replay(guess: Guess, tokens: list[int], num_prompt: int, most: int) -> list[int]:
    """Accepted drafts by place, where `tokens` is a prompt and its whole greedy answer."""
    guess(tokens, 0)  # the states of all tokens are computed once
    accepted, known = [0] * most, num_prompt + 1
    drafted = 0
    while known < len(tokens):
        drafts = guess(tokens[:known], min(most, len(tokens) - known - 1))
        drafted += len(drafts)
        right = 0
        while right < len(drafts) and drafts[right] == tokens[known + right]:
            accepted[right] += 1
            right += 1
        known += right + 1
    return [*accepted, drafted]
