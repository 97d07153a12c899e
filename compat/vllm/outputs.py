"""The results of requests."""

from vllm._names import resolver

_NAMES = (
    *("RequestOutput", "CompletionOutput", "PoolingOutput", "PoolingRequestOutput"),
    *("EmbeddingOutput", "EmbeddingRequestOutput", "ClassificationOutput"),
    *("ClassificationRequestOutput", "ScoringOutput", "ScoringRequestOutput"),
)
__getattr__, __dir__ = resolver(__name__, dict.fromkeys(_NAMES, "galley"))
