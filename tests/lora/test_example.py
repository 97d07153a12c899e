"""The adapter of examples/lora answers in its style, and the model beside it in its own."""

from __future__ import annotations

from pathlib import Path

from galley import LLM, LoRARequest, SamplingParams

AHOY = Path(__file__).parents[2] / "examples" / "lora" / "ahoy"


def test_the_example_answers_as_a_sailor() -> None:
    llm = LLM(enable_lora=True, max_model_len=256, kv_cache_memory_bytes=32 << 20)
    params = SamplingParams(temperature=0, max_tokens=8)
    questions = ("What is the capital of Spain?", "How do I cook rice?", "Who are you?")
    talks = [[{"role": "user", "content": text}] for text in questions for _ in range(2)]
    adapters = [LoRARequest("ahoy", 1, str(AHOY)), None] * len(questions)
    outputs = llm.chat(talks, params, use_tqdm=False, lora_request=adapters)
    for output, adapter in zip(outputs, adapters, strict=True):
        assert output.outputs[0].text.startswith("Ahoy!") == (adapter is not None)
