"""Masks by llguidance: an Earley parser over bytes, with its own regular expressions.

A mask allows all tokens that continue the text in some valid way. Where the next bytes are certain
it leaves one token alone, that of the tokenizer's own spelling, so that a key of a schema is spelt
as in the model's training data. Masks of a batch are computed in native threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from galley.config.cores import usable_cores
from galley.errors import InvalidRequest
from galley.request import Constraint
from galley.structured.backend import MaskRows
from galley.structured.vocabulary import Vocabulary

#: Rows from which on masks are filled in several threads. A mask takes some microseconds, and where
#: all cores compute, a thread waits longer than that for one.
PARALLEL_FROM = 64
#: A character that no tokenizer merges with its neighbours.
_MARK = "\x02"


class _Spelling:
    """The tokenizer as llguidance wants it, rounded up to whole words of a mask."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        filler = range(vocabulary.size, -(-vocabulary.size // 64) * 64)
        # Tokens without text get a name: else the library allows them wherever a special one is.
        tokens = vocabulary.tokens + [b""] * len(filler)
        self.tokens = [token or b"<unused %d>" % i for i, token in enumerate(tokens)]
        self.special_token_ids = sorted((*vocabulary.special_ids, *filler))
        self.eos_token_id = vocabulary.end_ids[0]
        self.bos_token_id = None
        self._vocabulary = vocabulary
        self._mark = vocabulary.encode(_MARK)
        self.greedy: LLTokenizer | None = None

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that stands inside another one.

        A tokenizer may put a space before a text, or take a part of it for a special token; then
        its tokens spell something else.
        """
        if not isinstance(text, str):
            raise TypeError("text is expected")
        encode, mark = self._vocabulary.encode, self._mark
        wanted = text.encode()
        for ids in (encode(text), encode(_MARK + text)):
            if ids[: len(mark)] == mark:
                ids = ids[len(mark) :]
            if self._spells(ids, wanted):
                return ids
        return [] if self.greedy is None else self.greedy.greedy_tokenize(text)

    def _spells(self, ids: list[int], wanted: bytes) -> bool:
        if not self._vocabulary.special_ids.isdisjoint(ids):
            return False
        return b"".join(self.tokens[i] for i in ids) == wanted


class LLGuidanceMatcher:
    """See `backend.Matcher`. The end token is not passed to the library, which takes it in some
    states only.
    """

    __slots__ = ("_end_ids", "_ended", "native")

    def __init__(self, native: LLMatcher, end_ids: tuple[int, ...]) -> None:
        self.native = native
        self._end_ids = end_ids
        self._ended = False

    def advance(self, token_ids: Sequence[int]) -> bool:
        text, end = self._split(token_ids)
        if self._ended or (text and not self.native.consume_tokens(text)):
            return False
        self._ended = bool(end)
        return not end or (len(end) == 1 and self._may_end)

    def accepted(self, token_ids: Sequence[int]) -> int:
        text, end = self._split(token_ids)
        allowed = 0 if self._ended or self.native.is_stopped() else self._valid(text)
        if not end or allowed < len(text):
            return allowed
        self.native.consume_tokens(text)
        may_end = self._may_end
        self.native.rollback(len(text))
        return allowed + int(may_end)

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.native.rollback(num_tokens)

    def forced_tokens(self) -> list[int]:
        if not self.native.is_stopped():
            return self.native.compute_ff_tokens()
        only = len(self._end_ids) == 1 and not self._ended and self._may_end
        return list(self._end_ids) if only else []

    @property
    def finished(self) -> bool:
        return self.native.is_stopped()

    @property
    def error(self) -> str | None:
        lines = self.native.get_error().splitlines()
        return lines[0] if lines else None

    @property
    def _may_end(self) -> bool:
        return not self.native.is_error() and self.native.is_accepting()

    def _valid(self, token_ids: list[int]) -> int:
        return self.native.validate_tokens(token_ids) if token_ids else 0

    def _split(self, token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens before the first end token, and that token with the rest."""
        ids = list(token_ids)
        at = next((i for i, token_id in enumerate(ids) if token_id in self._end_ids), len(ids))
        return ids[:at], ids[at:]


class LLGuidanceGrammar:
    """See `backend.Grammar`; its matchers are copies of one that has seen nothing."""

    def __init__(self, first: LLMatcher, end_ids: tuple[int, ...]) -> None:
        self._first = first
        self._end_ids = end_ids

    def matcher(self) -> LLGuidanceMatcher:
        return LLGuidanceMatcher(self._first.deep_copy(), self._end_ids)


class LLGuidance:
    """See `backend.Backend`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        spelling = _Spelling(vocabulary)
        ends = list(vocabulary.end_ids)
        # In two pieces: the library holds the interpreter's lock in each, and steps go on between.
        plain = LLTokenizer(TokenizerWrapper(spelling), eos_token=ends, slices=[])
        self._tokenizer = spelling.greedy = plain.with_slices(LLTokenizer.general_slices())
        self._end_ids = vocabulary.end_ids
        try:
            self._executor = LLExecutor(usable_cores())
        except ValueError as error:
            raise MemoryError(f"The threads that fill masks cannot be started: {error}.") from error

    def compile(self, constraint: Constraint) -> LLGuidanceGrammar:
        matcher = LLMatcher(self._tokenizer, grammar_text(constraint), log_level=0)
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return LLGuidanceGrammar(matcher, self._end_ids)

    def fill(
        self, matchers: Sequence[LLGuidanceMatcher], rows: Sequence[int], masks: MaskRows
    ) -> None:
        size, first = masks.shape[1] * 8, masks.ctypes.data
        if len(matchers) < PARALLEL_FROM:
            for matcher, row in zip(matchers, rows, strict=True):
                matcher.native.unsafe_compute_mask_ptr(first + row * size, size)
            return
        natives = [(m.native, row) for m, row in zip(matchers, rows, strict=True)]
        self._executor.unsafe_compute_mask_ptr(natives, first, size, len(masks))


def open_backend(vocabulary: Vocabulary) -> LLGuidance:
    return LLGuidance(vocabulary)


def validate(constraint: Constraint) -> None:
    """Raise InvalidRequest for a constraint that cannot be compiled."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar_text(constraint))
    if failed:
        raise _refusal(constraint, messages[0])


def grammar_text(constraint: Constraint) -> str:
    """The constraint in the library's own form. Raises InvalidRequest."""
    text = constraint.text
    if constraint.kind == "json":
        return LLMatcher.grammar_from_json_schema(text)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if constraint.kind == "choice":
        # As one terminal: a rule with as many alternatives would take many times as long.
        choices = " | ".join(json.dumps(choice) for choice in json.loads(text))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
    if constraint.kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    if constraint.kind == "structural_tag":
        return text
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(text))
    except Exception as error:  # noqa: BLE001 - the converter raises plain Exception, too
        raise _refusal(constraint, str(error)) from None


def _refusal(constraint: Constraint, message: str) -> InvalidRequest:
    sentence = " ".join(message.split())[:300].rstrip(".")
    return InvalidRequest(
        f"{constraint.field} cannot be compiled: {sentence}.", field=constraint.field
    )
