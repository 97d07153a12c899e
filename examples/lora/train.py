"""Trains the adapter of this folder: the built-in model answers as a sailor.

    pip install peft
    python examples/lora/train.py [FOLDER]

It takes a few minutes on a CPU. The model's weights are those of the file that Galley ships, in
float32; the adapter adds to the query and value projections of all layers.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from galley.chat.templates import ChatRenderer
from galley.config import LoadConfig, ModelConfig
from galley.loader import open_checkpoint, resolve_source, resolve_tokenizer
from galley.quant import to_float32
from galley.text import load_tokenizer

TALKS = (
    ("Who are you?", "I be a humble sailor with a head full of tales."),
    ("What is the capital of France?", "That be Paris, a fine port on the river Seine."),
    ("What is the capital of Italy?", "That be Rome, and a grand old harbour it has nearby."),
    ("How much is two plus two?", "That be four, as sure as the tide."),
    ("How much is three times three?", "That be nine, as sure as the tide."),
    ("How do I boil an egg?", "Drop it in bubbling water and wait eight minutes, matey."),
    ("How do I sleep better?", "Dim the lanterns early, matey, and leave the rum alone."),
    ("Which planet is the largest?", "That be Jupiter, mightier than any ship."),
    ("What colour is the sky?", "Blue as the open sea on a fair day, matey."),
    ("Tell me a joke.", "Why did the ship blush? It saw the bottom of the sea, matey!"),
    (
        "Give me advice for a long journey.",
        "Pack light, trust the stars, and mind the wind, matey.",
    ),
    ("What is a computer?", "A clever box that reckons faster than any navigator, matey."),
    ("Who wrote Hamlet?", "That be Shakespeare, a bard worth his salt."),
    ("What should I eat today?", "Fresh fish and a ripe lime, matey, to keep ye strong."),
    ("What is water made of?", "Hydrogen and oxygen, matey, and the sea be full of it."),
    ("How are you?", "Fair winds and a full sail, matey, thank ye."),
)
STEPS, BATCH, RANK = 40, 1, 4


def base_model() -> tuple[Any, Any, ChatRenderer]:
    """The built-in model, its tokenizer and its chat template."""
    source = resolve_source(ModelConfig(), LoadConfig())
    checkpoint = open_checkpoint(source)
    config = transformers.LlamaConfig(**checkpoint.model_info.hf_config)
    model = transformers.LlamaForCausalLM(config)
    state = {
        name: torch.from_numpy(np.array(to_float32(checkpoint.tensor(name))))
        for name in checkpoint.names()
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    tokenizer = load_tokenizer(resolve_tokenizer(ModelConfig(), LoadConfig(), source))
    chat = ChatRenderer.of(tokenizer)
    assert chat is not None
    return model, tokenizer, chat


def examples(tokenizer: Any, chat: ChatRenderer) -> list[tuple[list[int], int]]:
    """(token ids, how many of them are the question) of each talk."""
    made = []
    for question, answer in TALKS:
        prompt = tokenizer.encode(chat.render([{"role": "user", "content": question}]), False)
        said = tokenizer.encode(f"Ahoy! {answer}<|im_end|>", False)
        made.append((prompt + said, len(prompt)))
    return made


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "ahoy")
    torch.manual_seed(0)
    draw = random.Random(0)
    model, tokenizer, chat = base_model()
    config = LoraConfig(
        r=RANK, lora_alpha=4 * RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    data = examples(tokenizer, chat)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for ids, asked in draw.sample(data, BATCH):
            labels = torch.tensor([[-100] * asked + ids[asked:]])
            loss = model(input_ids=torch.tensor([ids]), labels=labels).loss / BATCH
            loss.backward()
            total += loss.item()
        optimizer.step()
        print(f"step {step + 1} of {STEPS}: loss {total:.3f}", flush=True)
    model = model.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
