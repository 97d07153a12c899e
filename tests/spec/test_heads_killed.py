"""An engine with draft heads is killed: its requests go on, with what the KV cache has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from galley.loader.gguf import GGUFFile
from tests.launcher.serving import Server, play
from tests.small_model import small_model
from tests.spec.heads import Random, write

TEXT = (Path(__file__).parents[1] / "data" / "opticks.txt").read_text()
_LENGTH = {"ignore_eos": True, "max_tokens": 50}
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "temperature": 0, **_LENGTH},
    {"prompt": "The sea is", "temperature": 1.0, "seed": 11, "n": 2, "logprobs": 1, **_LENGTH},
    {"prompt": TEXT[2000:5000], "temperature": 0, "repetition_penalty": 1.1, **_LENGTH},
    {"prompt": TEXT[6000:7000], "temperature": 0.7, "seed": 5, "stop": [" of the"], **_LENGTH},
]


def eagle(folder: Path) -> Path:
    """A random layer for the small model, of its sizes."""
    file = GGUFFile(small_model())
    hidden, wide, heads, kv_heads = (
        file.get(f"llama.{key}")
        for key in (
            *("embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.head_count_kv"),
        )
    )
    size, layer, made = hidden // heads, "layers.0.", Random(8)
    made.keep("fc.weight", torch.eye(hidden, 2 * hidden))
    for name, rows in (("q", heads * size), ("k", kv_heads * size), ("v", kv_heads * size)):
        made.matrix(f"{layer}self_attn.{name}_proj.weight", rows, hidden)
    made.matrix(f"{layer}self_attn.o_proj.weight", hidden, heads * size, std=0.01)
    for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
        made.matrix(f"{layer}mlp.{name}_proj.weight", *shape, std=0.01)
    made.norm(f"{layer}post_attention_layernorm.weight", hidden)
    config = {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
    }
    return write(folder, config, made.tensors)


def test_answers_are_those_of_an_engine_that_lives(tmp_path: Path) -> None:
    plain = Server()
    want = [a.seen for a in play(plain, REQUESTS)]
    plain.close()
    drafter = ("--spec-method", "eagle", "--spec-model", str(eagle(tmp_path / "eagle")))
    faults = ["1:step12=kill", "2:after3=kill"]
    env = {"GALLEY_FAULTS": ",".join(faults), "GALLEY_DEV_MODE": "1"}
    server = Server(
        *drafter, "--speculative-config.draft_length", "fixed",
        "--max-num-batched-tokens", "128", env=env,
    )  # fmt: skip
    assert [a.seen for a in play(server, REQUESTS)] == want
    server.inspect()
    assert all(server.count(f"injected fault: {fault}\n") for fault in faults)
    assert server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
    server.close()
