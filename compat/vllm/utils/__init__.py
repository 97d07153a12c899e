"""Tools of scripts."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {
        "FlexibleArgumentParser": "vllm.utils.argparse_utils",
        "print_embeddings": "vllm.utils.print_utils",
        "random_uuid": "vllm.utils.identifiers",
    },
)
