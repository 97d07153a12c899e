"""Beam search."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {
        "BeamSearchOutput": "galley.frontend.beam_search",
        "BeamSearchParams": "galley.frontend.beam_search",
    },
)
