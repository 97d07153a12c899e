"""Prompts before they are rendered."""

from __future__ import annotations

from galley import PromptType

__all__ = ["parse_model_prompt"]


def parse_model_prompt(model_config: object, prompt: PromptType) -> PromptType:
    """The prompt itself: `render_cmpl` takes all forms."""
    return prompt
