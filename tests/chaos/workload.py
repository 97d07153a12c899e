"""Requests that differ in all that a replay could get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[1] / "data" / "opticks.txt").read_text()

_LENGTH = {"ignore_eos": True, "max_tokens": 60}
_RECORD = {
    "type": "object",
    "properties": {"description_of_the_place": {"type": "string"}, "height": {"type": "integer"}},
    "required": ["description_of_the_place", "height"],
}
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "temperature": 0, **_LENGTH},
    {"prompt": "The sea is", "temperature": 1.0, "seed": 11, **_LENGTH},
    {"prompt": "One, two,", "temperature": 1.0, "seed": 3, "n": 2, "logprobs": 1, **_LENGTH},
    {"prompt": "In a word,", "temperature": 0, "logprobs": 2, **_LENGTH},
    {
        "prompt": "A list of",
        "temperature": 0.8,
        "seed": 4,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        **_LENGTH,
    },
    {"prompt": "Nobody", "temperature": 1.0, "seed": 7, "min_tokens": 50, "max_tokens": 60},
    {"prompt": TEXT[2000:5000], "temperature": 0.7, "seed": 5, "top_p": 0.9, **_LENGTH},
    {"prompt": TEXT[6000:8000], "temperature": 0, "logit_bias": {"28": -5}, **_LENGTH},
    {"prompt": TEXT[400:900], "temperature": 0, "stream": False, "prompt_logprobs": 1, **_LENGTH},
    {
        "prompt": "A mountain:",
        "temperature": 0.9,
        "seed": 2,
        "max_tokens": 60,
        "structured_outputs": {"json": _RECORD},
    },
    {
        "prompt": "Letters:",
        "temperature": 1.0,
        "seed": 9,
        "n": 2,
        "max_tokens": 60,
        "structured_outputs": {"regex": "([a-f]{4} )+the certain end of all letters"},
    },
    {"prompt": TEXT[9000:9300], "temperature": 0, "stop": ["\n\n", " of the r"], **_LENGTH},
]
