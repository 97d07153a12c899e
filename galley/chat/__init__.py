"""Messages to the text of a prompt, by the checkpoint's chat template. Knows no HTTP."""

from galley.chat.templates import ChatRenderer
from galley.chat.tokenizer import ChatTokenizer

__all__ = ["ChatRenderer", "ChatTokenizer"]
