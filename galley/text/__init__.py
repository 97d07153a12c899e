"""Text and tokens: tokenizers, incremental detokenisation, stop strings."""

from galley.text.detokenizer import TextStream
from galley.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]
