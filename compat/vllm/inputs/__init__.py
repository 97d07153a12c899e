"""Prompts."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {
        **dict.fromkeys(("PromptType", "TextPrompt", "TokensPrompt"), "galley"),
        "EmbedsPrompt": "galley.frontend.prompts",
    },
)
