"""Makes a draft model of the built-in model's first layers.

    pip install torch transformers
    python examples/drafter/first_layers.py FOLDER TEXT_FILE [LAYERS]

A model cut behind some layer has hidden states that its head was not made for. So the head of the
drafter is the model's, times the matrix that best maps the state behind the last kept layer to the
state behind the model's last one, over the tokens of the text (ridge regression, no training). It
takes a minute or two on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from galley.config import LoadConfig, ModelConfig
from galley.loader import open_checkpoint, resolve_source, resolve_tokenizer
from galley.quant import to_float32
from galley.text import load_tokenizer

#: Tokens of the text that are used, and of a piece that the model reads at a time.
MOST_TOKENS, PIECE = 8192, 512
#: Of the ridge regression, as a fraction of the mean square of the inputs.
RIDGE = 0.01


def built_in() -> tuple[transformers.LlamaForCausalLM, Any]:
    """The built-in model in float32, and its tokenizer."""
    source = resolve_source(ModelConfig(), LoadConfig())
    checkpoint = open_checkpoint(source)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**checkpoint.model_info.hf_config)
    )
    state = {
        name: torch.from_numpy(np.array(to_float32(checkpoint.tensor(name))))
        for name in checkpoint.names()
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    tokenizer = load_tokenizer(resolve_tokenizer(ModelConfig(), LoadConfig(), source))
    return model.eval(), tokenizer


def normed(hidden: torch.Tensor, eps: float) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)


def head_of(model: transformers.LlamaForCausalLM, ids: list[int], layers: int) -> torch.Tensor:
    """[vocabulary, hidden] scores of tokens by the normed state behind so many layers."""
    inputs, wanted = [], []
    with torch.inference_mode():
        for start in range(0, len(ids), PIECE):
            piece = torch.tensor([ids[start : start + PIECE]])
            states = model.model(piece, output_hidden_states=True).hidden_states
            inputs.append(normed(states[layers][0], model.config.rms_norm_eps))
            wanted.append(states[-1][0])  # behind the final norm
        x, y = torch.cat(inputs).double(), torch.cat(wanted).double()
        gram = x.T @ x
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        return model.lm_head.weight @ torch.linalg.solve(gram, x.T @ y).T.float()


def main() -> None:
    folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else 6
    model, tokenizer = built_in()
    ids = tokenizer.encode(text, False)[:MOST_TOKENS]
    head = head_of(model, ids, layers)
    config = transformers.LlamaConfig(
        **{**model.config.to_dict(), "num_hidden_layers": layers, "tie_word_embeddings": False}
    )
    drafter = transformers.LlamaForCausalLM(config)
    state = {
        **{k: v for k, v in model.state_dict().items() if k in drafter.state_dict()},
        "model.norm.weight": torch.ones(config.hidden_size),
        "lm_head.weight": head,
    }
    drafter.load_state_dict(state)
    drafter.to(torch.bfloat16).save_pretrained(folder)
    print(f"{folder}: {layers} layers, from {len(ids)} tokens")


if __name__ == "__main__":
    main()
