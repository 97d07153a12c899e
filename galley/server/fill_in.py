"""Fill-in-the-middle: a prompt and a suffix become one prompt, where the tokenizer can say so."""

from __future__ import annotations

from galley.errors import Unsupported
from galley.server.context import Context


def fill_in_prompt(ctx: Context, prompt: str | list[int], suffix: str) -> list[int]:
    """Token ids that ask for what stands between `prompt` and `suffix`.

    Raises:
        Unsupported: the tokenizer names no fill-in-the-middle tokens.
    """
    tokenizer = ctx.require_tokenizer()
    marks = tokenizer.fim
    if marks is None:
        raise Unsupported(
            "suffix is not supported by this model: its tokenizer has no fill-in-the-middle "
            "tokens.",
            field="suffix",
        )
    prefix = tokenizer.encode(prompt, False) if isinstance(prompt, str) else prompt
    return marks.prompt(prefix, tokenizer.encode(suffix, False))
