"""Perplexity of a text, of models as the engine runs them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from galley.errors import ConfigError, ModelError

#: Tokens of a window, each computed by itself.
WINDOW = 512
#: Of a longer text, the first so many windows.
MOST = 32


def read_text(path: str) -> str:
    """Raises ConfigError for a file that is no UTF-8 text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--perplexity {path}: {error}", field="perplexity") from None


def perplexity(model: str, text: str) -> float:
    """Of the first windows of the text: exp of the mean negative log-likelihood of each token after
    the first of its window. Raises ModelError for a text that is too short."""
    from rich.console import Console
    from rich.progress import track

    from galley.llm import LLM
    from galley.request import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    with LLM(model, max_num_seqs=1, max_num_batched_tokens=WINDOW) as llm:
        ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
        size = min(WINDOW, llm.max_model_len - 1)
        windows = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)][:MOST]
        if not windows:
            raise ModelError(f"the text has {len(ids)} tokens; a window has {size}")
        total = 0.0
        console, quiet = Console(stderr=True), not sys.stderr.isatty()
        for window in track(windows, "Perplexity", console=console, disable=quiet):
            [output] = llm.generate([window], params, use_tqdm=False)
            assert output.prompt_logprobs is not None
            for token, entry in zip(window[1:], output.prompt_logprobs[1:], strict=True):
                assert entry is not None
                total -= entry[token].logprob
    return math.exp(total / sum(len(window) - 1 for window in windows))
