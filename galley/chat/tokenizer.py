"""A model's tokenizer with the interface of transformers.

`LLM.get_tokenizer` returns it; nothing in Galley uses it. It returns lists of ids and texts, not
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from galley.chat.templates import ChatRenderer
from galley.errors import Unsupported
from galley.text import Tokenizer

Message = Mapping[str, Any]
#: Arguments of transformers that are about tensors.
_OF_TENSORS = ("return_tensors", "padding", "truncation", "max_length", "tokenizer_kwargs")


class Encoding(dict[str, Any]):
    """`input_ids` and `attention_mask` of a text, or lists of these; also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ChatTokenizer:
    """A tokenizer with a chat template.

    Args:
        plain: Galley's own tokenizer.
        chat_template: wins over the model's: a file, or the template itself.
    """

    is_fast = True

    def __init__(self, plain: Tokenizer, chat_template: str | None = None) -> None:
        self.plain = plain
        self._chat_template = chat_template
        self.bos_token, self.bos_token_id = plain.bos_token, plain.bos_token_id
        self.eos_token, self.eos_token_id = plain.eos_token, plain.eos_token_id
        self.unk_token, self.unk_token_id = plain.unk_token, self._id(plain.unk_token)
        self.pad_token, self.pad_token_id = plain.pad_token, self._id(plain.pad_token)
        self.all_special_ids = sorted(plain.special_ids)
        self.all_special_tokens = self.convert_ids_to_tokens(self.all_special_ids)
        self.vocab_size = plain.vocab_size
        self.max_token_id = plain.vocab_size - 1

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def chat_template(self) -> str | None:
        return self._chat_template or self.plain.chat_templates.get("default")

    # ------------------------------------------------------------------ text and ids

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> Encoding:
        """The ids of a text, or of each of several."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        rows = [self.encode(one, add_special_tokens) for one in text]
        return Encoding(input_ids=rows, attention_mask=[[1] * len(ids) for ids in rows])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises InvalidRequest for a text that cannot be encoded."""
        return self.plain.encode(text, add_special_tokens)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.plain.decode(ids, skip_special_tokens)

    def batch_decode(
        self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...  # type: ignore[overload-overlap]
    @overload
    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token as the vocabulary spells it, None for one that it lacks."""
        return self._id(tokens) if isinstance(tokens, str) else [self._id(t) for t in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        spell = self.plain.id_to_token
        return spell(ids) if isinstance(ids, int) else [spell(i) for i in ids]

    def get_vocab(self) -> dict[str, int]:
        """Token as the vocabulary spells it → id, added ones included."""
        spelt = ((self.plain.id_to_token(i), i) for i in range(self.vocab_size))
        return {token: i for token, i in spelt if token is not None}

    def get_added_vocab(self) -> dict[str, int]:
        return {token: i for i, token in self.plain.added_tokens.items()}

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.plain.token_to_id(token)

    # ------------------------------------------------------------------ conversations

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """A conversation, or each of several, as the text of a prompt, or as its ids.

        Args:
            tokenize: give ids; with `return_dict` as an `Encoding`.
            variables: further variables of the template.

        Raises:
            InvalidRequest: no messages, or a template that refuses them.
            Unsupported: there is no template; tensors are asked for.
        """
        for name in _OF_TENSORS:
            if variables.pop(name, None):
                raise Unsupported(f"{name} is not supported: ids are lists here.", field=name)
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        talks: Any = conversation if several else [conversation]
        texts = [
            self._renderer.render(
                [dict(message) for message in talk],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                tools=None if tools is None else [dict(tool) for tool in tools],
                documents=None if documents is None else [dict(d) for d in documents],
                kwargs=variables,
            )
            for talk in talks
        ]
        if not tokenize:
            return texts if several else texts[0]
        encoded = self(texts if several else texts[0], add_special_tokens=False)
        return encoded if return_dict else encoded.input_ids

    @cached_property
    def _renderer(self) -> ChatRenderer:
        renderer = ChatRenderer.of(self.plain, self._chat_template)
        if renderer is None:
            raise Unsupported("this model has no chat template.", field="conversation")
        return renderer
