"""Log probabilities of tokens."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {
        "Logprob": "galley.outputs",
        "FlatLogprobs": "galley.frontend.flat_logprobs",
    },
)
