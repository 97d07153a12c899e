"""Offline generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import galley
from galley import PromptType, TokensPrompt

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

__all__ = ["LLM"]


class LLM(galley.LLM):
    """Galley's LLM, and vLLM's attributes of one."""

    @property
    def llm_engine(self) -> LLMEngine:
        """The engine, for callers that step it themselves."""
        from vllm.v1.engine.llm_engine import LLMEngine

        return LLMEngine(self)

    @property
    def model_config(self) -> Any:
        return self.config.model

    @property
    def renderer(self) -> Renderer:
        """Renders prompts to token ids."""
        return Renderer(self)


class TokenizeParams(dict[str, Any]):
    """How prompts are tokenised: `add_special_tokens`."""

    def with_kwargs(self, **changes: Any) -> TokenizeParams:
        return TokenizeParams({**self, **changes})


class Renderer:
    """Makes token ids of prompts and conversations."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.default_cmpl_tok_params = TokenizeParams(add_special_tokens=True)

    def render_cmpl(
        self, prompts: Iterable[PromptType], tok_params: Mapping[str, Any] | None = None
    ) -> list[PromptType]:
        """Each text as token ids; prompts in other forms are returned as they are."""
        special = (tok_params or self.default_cmpl_tok_params).get("add_special_tokens", True)
        encode = self._llm.get_tokenizer().encode
        rendered: list[PromptType] = []
        for prompt in prompts:
            text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
            if not isinstance(text, str) or (isinstance(prompt, Mapping) and len(prompt) > 1):
                rendered.append(prompt)
                continue
            ids = encode(text, add_special_tokens=special)
            rendered.append(TokensPrompt(prompt_token_ids=ids, prompt=text))
        return rendered
