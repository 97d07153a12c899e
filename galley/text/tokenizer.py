"""Text ⇄ token ids: one `Tokenizer` for all vocabulary files.

Knows no request and no template; the `tokenizers` library does the splitting and merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from galley.errors import ModelError
from galley.request import SamplingParams
from galley.text.detokenizer import PieceStream, StopStream, TextStream, WindowStream
from galley.text.fim import FimTokens, find_fim
from galley.text.pieces import PieceDecoder, piece_rule
from galley.text.stop import StopMatcher
from galley.text.tokenizer_spec import TokenizerSpec, encoding_errors


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or of a .gguf file (`loader.resolve_tokenizer`).

    Raises:
        ModelError: names the file and what is missing, damaged or not supported.
    """
    if path.suffix == ".gguf":
        from galley.text.from_gguf import build_from_gguf

        return Tokenizer(build_from_gguf(path))
    if not path.is_dir():
        raise ModelError(f"{path}: neither a directory nor a .gguf file", field="tokenizer")
    from galley.text.from_directory import build_from_directory

    return Tokenizer(build_from_directory(path))


class Tokenizer:
    """Encodes, decodes, and makes text streams.

    Attributes:
        bos_token, eos_token, unk_token, pad_token: text, None where there is none.
        chat_templates: name → jinja source, as the checkpoint carries them.
        special_ids: ids of control tokens, which `skip_special_tokens` leaves out.
        added_tokens: id → text of all tokens that are matched whole, special or not.
        end_ids: ids at which a text ends: that of `eos_token`, and others of a file that names one
            where several are in use.
    """

    def __init__(self, backend: TokenizerSpec) -> None:
        self._library = backend.tokenizer
        self._declared_fim = backend.fim
        self.bos_token = backend.bos
        self.eos_token = backend.eos
        self.unk_token = backend.unk
        self.pad_token = backend.pad
        self.chat_templates = backend.chat_templates
        added = self._library.get_added_tokens_decoder()
        self.added_tokens = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        eos = self.eos_token_id
        self.end_ids = frozenset(backend.ends if eos is None else (*backend.ends, eos))
        rule = piece_rule(self._library.decoder)
        self._pieces: PieceDecoder | None = None
        if rule is not None:
            to_bytes, strips_space = rule
            self._pieces = PieceDecoder(to_bytes, self.id_to_token, self.special_ids, strips_space)

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's may be larger (padded)."""
        return self._library.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else self.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return None if self.eos_token is None else self.token_to_id(self.eos_token)

    @cached_property
    def fim(self) -> FimTokens | None:
        """Fill-in-the-middle marks, None where the vocabulary has none."""
        return find_fim(self.token_to_id, self._declared_fim)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of the whole text. Special tokens spelled in the text are recognised.

        Raises InvalidRequest for text that no UTF-8 can hold (a lone surrogate), or that the
        vocabulary has no tokens for.
        """
        with encoding_errors():
            return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Token ids of two texts, joined as the tokenizer does, and the segment (0, 1) of each.

        Raises InvalidRequest as `encode` does.
        """
        with encoding_errors():
            encoding = self._library.encode(first, second)
        return encoding.ids, encoding.type_ids

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text, as long as its first tokens. Raises InvalidRequest."""
        with encoding_errors():
            encoding = self._library.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= count:
            return text
        return text[: encoding.offsets[count - 1][1]]

    def offsets(self, text: str, add_special_tokens: bool = True) -> list[tuple[int, int]]:
        """Of each token of `encode`, the first of its characters and the one behind its last;
        (0, 0) for a token that the tokenizer has added. Raises InvalidRequest."""
        with encoding_errors():
            return self._library.encode(text, add_special_tokens=add_special_tokens).offsets

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        with encoding_errors():
            batch = self._library.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        return [encoding.ids for encoding in batch]

    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of all tokens; bytes that are no UTF-8 become "�", unknown ids nothing."""
        stream = self._stream((), skip_special_tokens, spaces_between_special_tokens)
        pieces = [stream.push(token_id) for token_id in token_ids]
        return "".join(pieces) + stream.finish()

    def decode_token(self, token_id: int) -> str:
        """The text of one token inside a text, special ones included."""
        if self._pieces is None:
            return self._library.decode([token_id], skip_special_tokens=False)
        piece = self._pieces.all[token_id]
        return piece if isinstance(piece, str) else piece.decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; b"" for an unknown id."""
        if self._pieces is None:
            return self.decode_token(token_id).encode()
        return self._pieces.token_bytes(token_id)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an id that it lacks."""
        return self._library.id_to_token(token_id) if token_id >= 0 else None

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def stream(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> TextStream:
        """The text of one answer as it grows, ending at a stop string of `params`."""
        inner = self._stream(
            prompt_token_ids, params.skip_special_tokens, params.spaces_between_special_tokens
        )
        if not params.stop:
            return inner
        matcher = StopMatcher(params.stop, params.include_stop_str_in_output)
        return StopStream(inner, matcher, params.min_tokens)

    def _stream(
        self, prompt_token_ids: Sequence[int], skip_special: bool, spaces_between: bool
    ) -> TextStream:
        if self._pieces is not None:
            return PieceStream(self._pieces, prompt_token_ids, skip_special)

        def decode(token_ids: list[int]) -> str:
            return self._library.decode(token_ids, skip_special_tokens=skip_special)

        bare = not skip_special and not spaces_between
        return WindowStream(decode, prompt_token_ids, self.added_tokens if bare else {})
