"""Requests: sampling and pooling parameters, adapters, and the engine's request.

Shared types: imports only `errors` and `validation`. The engine's `Request` crosses the process
border as msgpack.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.validation import locate

#: `SamplingParams` fields of vLLM 0.32 that are refused by name until they act.
UNSUPPORTED_SAMPLING_FIELDS = (
    "watermarking",
    "prompt_logprob_token_ids",
    "prompt_logprob_start",
    "skip_reading_prefix_cache",
    "thinking_token_budget",
    "routed_experts_prompt_start",
    "trace_decode_token_ids",
)
#: Fields of vLLM's that only steer its own processes: accepted without effect.
STEERING_FIELDS = ("skip_clone", "output_text_buffer_length")
#: Fields of earlier versions of vLLM, and what they are called now.
_RENAMED = {"guided_decoding": "structured_outputs"}
MAX_LOGPROBS = 20
#: Most entries of `SamplingParams.logprob_token_ids`.
MAX_LOGPROB_TOKEN_IDS = 128


#: Fields of `StructuredOutputsParams` that are constraints; exactly one of them is set.
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_TRUNCATION_RANGE = "at least 1, or -1 for the model's length"


class RequestOutputKind(enum.IntEnum):
    """How much of the text each output carries (vLLM's names)."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class FinishReason(enum.IntEnum):
    """Why a request ended. The wire text is `str(reason)`."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4

    def __str__(self) -> str:
        return self.name.lower()


class FailureKind(enum.IntEnum):
    """The cause of an error that ended a request; decides the status of the answer."""

    ENGINE = 0
    #: The request cannot be served as it is.
    REQUEST = 1
    #: There are too many requests at the moment.
    LOAD = 2


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why one request ended with an error inside the engine.

    Attributes:
        field: of the request, if one is at fault.
    """

    message: str
    kind: FailureKind = FailureKind.ENGINE
    field: str | None = None


class _NamesField(msgspec.StructMeta):
    """Metaclass whose constructor names the field in its errors."""

    def __call__(cls, **args: Any) -> Any:
        """Raises InvalidRequest for an unknown field or a value of the wrong type, Unsupported
        for a field that vLLM has and Galley has not.
        """
        for name in args.keys() - cls.__struct_fields__:
            refuse_field(name, args.pop(name), cls.__name__, cls.__struct_fields__)
        try:
            return msgspec.convert({k: _plain(v) for k, v in args.items()}, cls, str_keys=True)
        except msgspec.ValidationError as e:
            if isinstance(e.__cause__, InvalidRequest):
                raise e.__cause__ from None
            what, path = locate(re.sub(r"\barray\b", "list", str(e)))
            field = re.findall(r"\w+", path or "")[0]
            raise InvalidRequest(f"{field}: {what.lower()}.", field=field) from None


def refuse_field(name: str, value: Any, struct: str, known: tuple[str, ...]) -> None:
    """Return if `value` is the same as the default; raise Unsupported or InvalidRequest."""
    if name in STEERING_FIELDS:
        return
    if name in UNSUPPORTED_SAMPLING_FIELDS:
        if value is None or (isinstance(value, int) and value == 0):
            return
        raise Unsupported(f"{name} is not supported yet.", field=name)
    near = difflib.get_close_matches(_RENAMED.get(name, name), known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InvalidRequest(f"{struct} has no field {name}.{hint}", field=name)


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python number."""
    return value.item() if getattr(value, "shape", None) == () else value


class RepetitionDetectionParams(msgspec.Struct, frozen=True):
    """When an answer counts as repeating itself: its end is a pattern of min_pattern_size (0 is 1)
    to max_pattern_size tokens, min_count times in a row. max_pattern_size 0 switches it off.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    @property
    def fault(self) -> str | None:
        """The error in the numbers as a sentence, or None."""
        if not 0 <= self.min_pattern_size <= self.max_pattern_size:
            return (
                "max_pattern_size and min_pattern_size must be at least 0, with min_pattern_size "
                "<= max_pattern_size."
            )
        if self.max_pattern_size and self.min_count < 2:
            return "min_count must be at least 2; max_pattern_size 0 switches detection off."
        return None


class TokenMarker(msgspec.Struct, frozen=True):
    """A text that may appear in an output, and how tokens spell it.

    Tokens lead from state to state: 0 is none of it, `size` all of it, `size + 1` all of it with
    more behind it in the same token.

    Attributes:
        ids: the tokens that usually spell it.
        steps: int32 triples: a state, a token, and the state that it leads to. A token without a
            step leads to where it leads from state 0, and without a step from there to 0.
    """

    ids: tuple[int, ...]
    size: int
    steps: bytes

    @classmethod
    def of_steps(
        cls, ids: tuple[int, ...], size: int, steps: Iterable[tuple[int, int, int]]
    ) -> TokenMarker:
        return cls(ids, size, array("i", itertools.chain.from_iterable(steps)).tobytes())

    @classmethod
    def of_tokens(cls, ids: tuple[int, ...]) -> TokenMarker:
        """A marker that only these tokens spell."""
        back = [0] * (len(ids) + 1)

        def step(state: int, token_id: int) -> int:
            while state and ids[state] != token_id:
                state = back[state]
            return state + 1 if ids[state] == token_id else 0

        for end in range(2, len(ids) + 1):
            back[end] = step(back[end - 1], ids[end - 1])
        pairs = ((state, token_id) for state in range(len(ids)) for token_id in set(ids))
        return cls.of_steps(ids, len(ids), [(s, t, step(s, t)) for s, t in pairs])

    def table(self) -> MarkerTable:
        """The steps as a dictionary."""
        numbers = array("i", self.steps)
        pairs = zip(numbers[0::3], numbers[1::3], strict=True)
        return MarkerTable(self.size, dict(zip(pairs, numbers[2::3], strict=True)))


class MarkerTable(msgspec.Struct, frozen=True):
    """See `TokenMarker`; `steps` is (state, token) → state."""

    size: int
    steps: dict[tuple[int, int], int]

    def step(self, state: int, token_id: int) -> int:
        """The state behind a token."""
        steps = self.steps
        found = steps.get((state, token_id)) if state else None
        return steps.get((0, token_id), 0) if found is None else found

    def overruns(self, state: int) -> set[int]:
        """Tokens that complete the marker from this state and go on behind it."""
        tokens = {token_id for at, token_id in self.steps if at in (0, state)}
        return {token_id for token_id in tokens if self.step(state, token_id) > self.size}


class StructuredOutputs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Constraint on the text of an answer, in vLLM's names.

    Attributes:
        json: a JSON schema, as an object or as text.
        regex: a regular expression that the whole text matches.
        choice: the texts to choose from.
        grammar: EBNF (as of xgrammar and llama.cpp) or Lark; which one is told by its rules.
        json_object: any JSON object.
        structural_tag: JSON of vLLM's structural tags: free text with constrained parts.
        disable_any_whitespace: JSON without optional white space.
        disable_additional_properties: JSON objects have no properties but those that their schema
            names.
        whitespace_pattern: a regular expression for the white space of JSON.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None


class StructuredOutputsParams(
    StructuredOutputs, metaclass=_NamesField, omit_defaults=True, kw_only=True
):
    """`StructuredOutputs` with exactly one constraint, which is verified.

    Attributes:
        start_after: markers; the constraint applies to what follows the first of them in the
            output. None = from the first token on.
        num_written: so many tokens at the end of the prompt are the beginning of the text.
        special_tokens: texts in `structural_tag` that stand for special tokens → their ids.
        source: the field of the request that has brought the constraint, for errors; None: it is
            `structured_outputs`.
    """

    start_after: list[TokenMarker] | None = None
    num_written: int = 0
    special_tokens: dict[str, int] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        self.verify()

    @property
    def kind(self) -> str:
        """The name of the constraint that is set."""
        return next(name for name in CONSTRAINTS if getattr(self, name) is not None)

    @property
    def field_name(self) -> str:
        """The field of the request that has brought the constraint."""
        return self.source or f"structured_outputs.{self.kind}"

    def verify(self) -> None:
        """Raise `InvalidRequest` naming the field at fault."""
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "You can only use one kind of constraints for structured outputs, got "
                f"{' and '.join(given)}."
                if given
                else "You must use one kind of structured outputs constraint but none are "
                f"specified: one of {', '.join(CONSTRAINTS)}.",
                field="structured_outputs",
            )
        for name, value in (
            ("json_object", self.json_object),
            ("regex", self.regex),
            ("choice", self.choice),
            ("grammar", self.grammar),
            ("structural_tag", self.structural_tag),
            ("json", self.json),
        ):
            empty = value is not None and not value and not isinstance(value, dict)
            if empty or (isinstance(value, str) and not value.strip()):
                what = "must be true" if name == "json_object" else "must not be empty"
                raise InvalidRequest(
                    f"structured_outputs: {name} {what}.", field=f"structured_outputs.{name}"
                )


class Constraint(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checked constraint, as the engine gets it. It determines the masks of an answer, so a
    replay with the same one continues the answer.

    Attributes:
        kind: what `text` is: "json" a normalised JSON schema, "choice" a JSON list of texts,
            "structural_tag" normalised JSON; "regex", "lark" and "ebnf" as they are.
        backend: the library that makes the masks, a key of `structured.backend.BACKENDS`.
        any_whitespace, whitespace_pattern: of JSON, see `StructuredOutputsParams`.
        start_after: see `StructuredOutputsParams`; () = from the first token on.
        num_written: see `StructuredOutputsParams`.
        field: the field of the request that brought it, for errors.
    """

    kind: Literal["json", "choice", "regex", "lark", "ebnf", "structural_tag"]
    text: str
    backend: str = "guidance"
    any_whitespace: bool = True
    whitespace_pattern: str | None = None
    start_after: tuple[TokenMarker, ...] = ()
    num_written: int = 0
    field: str = "structured_outputs"


class ReasoningLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits of an answer's reasoning.

    Attributes:
        start, end: the markers around it.
        begun: the prompt has begun the reasoning; else the output does, with `start`.
        max_tokens: after so many tokens of it, the marker of its end comes; None: no limit.
        must_end: no stop token comes inside it, and no token that goes beyond its end.
        close: the tokens that end it; () = those of `end`.
        parts: markers around the parts that count as reasoning; None: all of it does.
    """

    start: TokenMarker
    end: TokenMarker
    begun: bool = False
    max_tokens: int | None = None
    must_end: bool = False
    close: tuple[int, ...] = ()
    parts: tuple[TokenMarker, TokenMarker] | None = None


class SamplingParams(
    msgspec.Struct, metaclass=_NamesField, omit_defaults=True, kw_only=True, tag="sampling"
):
    """How to sample one request (vLLM's names, types and defaults).

    Types are checked by the metaclass, ranges in `verify`. `max_tokens=None` means up to the
    model's length. A `seed` of -1 is none. With `allowed_logprobs`, logprobs are of the tokens
    that a constraint allows, among these alone. `extra_args` are for the engine's logits
    processors. `truncate_prompt_tokens` and `priority` belong to
    the request and are applied by the input processor.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    truncate_prompt_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    structured_outputs: StructuredOutputsParams | None = None
    reasoning_limits: ReasoningLimits | None = None
    allowed_logprobs: bool = False
    logits_processors: list[Any] | None = None
    extra_args: dict[str, Any] | None = None
    speculative: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.verify()

    def clone(self) -> SamplingParams:
        """A deep copy."""
        return SamplingParams(**msgspec.structs.asdict(self))

    def verify(self) -> None:
        """Raise `InvalidRequest` naming the first field that is out of range."""
        for ok, name, want in (
            (self.n >= 1, "n", "at least 1"),
            (-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "in [-2, 2]"),
            (-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "in [-2, 2]"),
            (
                # Beyond these a penalised logit overflows single precision.
                1e-30 <= self.repetition_penalty <= 1e30,
                "repetition_penalty",
                "above 0 (in [1e-30, 1e30])",
            ),
            (0.0 <= self.temperature < float("inf"), "temperature", "at least 0 and finite"),
            (0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]"),
            (self.top_k >= -1, "top_k", "at least 1, or 0 or -1 for no limit"),
            (0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]"),
            (self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1"),
            (self.min_tokens >= 0, "min_tokens", "at least 0"),
            (
                self.stream_interval is None or self.stream_interval >= 1,
                "stream_interval",
                "at least 1",
            ),
            (
                self.max_tokens is None or self.min_tokens <= self.max_tokens,
                "min_tokens",
                f"at most max_tokens={self.max_tokens}",
            ),
            (self.logprobs is None or self.logprobs >= -1, "logprobs", "at least 0, or -1 for all"),
            (
                self.prompt_logprobs is None or self.prompt_logprobs >= -1,
                "prompt_logprobs",
                "at least 0, or -1 for all",
            ),
            (
                self.seed is None or -(2**63) <= self.seed < 2**63,
                "seed",
                "a signed 64-bit integer",
            ),
            (
                self.truncate_prompt_tokens is None or self.truncate_prompt_tokens >= -1,
                "truncate_prompt_tokens",
                _TRUNCATION_RANGE,
            ),
        ):
            if not ok:
                raise InvalidRequest(
                    f"{name} must be {want}, got {getattr(self, name)}.", field=name
                )
        if self.stop is not None and any(not s for s in self.stop):
            raise InvalidRequest("stop must not contain an empty string.", field="stop")
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop strings need detokenize=True.", field="stop")
        if not all(-1e30 <= bias <= 1e30 for bias in (self.logit_bias or {}).values()):
            raise InvalidRequest("logit_bias must be in [-1e30, 1e30].", field="logit_bias")
        if self.bad_words is not None and any(not s for s in self.bad_words):
            raise InvalidRequest("bad_words must not contain an empty string.", field="bad_words")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids must not be empty.", field="allowed_token_ids")
        if self.repetition_detection is not None and (fault := self.repetition_detection.fault):
            raise InvalidRequest(f"repetition_detection: {fault}", field="repetition_detection")
        self._verify_logprob_token_ids()

    def _verify_logprob_token_ids(self) -> None:
        if self.logprob_token_ids is None:
            return
        name, count = "logprob_token_ids", len(self.logprob_token_ids)
        if not 1 <= count <= MAX_LOGPROB_TOKEN_IDS:
            raise InvalidRequest(
                f"{name} must have 1 to {MAX_LOGPROB_TOKEN_IDS} ids, got {count}.", field=name
            )
        if self.logprobs not in (None, count):
            raise InvalidRequest(
                f"{name} replace the most likely tokens: logprobs must be left out or "
                f"{count}, their number; got {self.logprobs}.",
                field=name,
            )

    @property
    def wants_logprobs(self) -> bool:
        """Whether logprobs of the generated tokens are requested."""
        return self.logprobs is not None or self.logprob_token_ids is not None


Pooling = Literal["CLS", "LAST", "MEAN", "ALL", "STEP"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]


class PoolingParams(
    msgspec.Struct, metaclass=_NamesField, omit_defaults=True, kw_only=True, tag="pooling"
):
    """How to turn a prompt into one vector, or one of each token, without generating.

    Attributes:
        task: vLLM's name of what is made: a vector of the text (embed) or of each token
            (token_embed), or the labels' numbers likewise. None = the model's own.
        pooling: final hidden state of the first token (CLS), of the LAST, the MEAN of all, ALL
            of them, or those of the tokens `step_tag_id` (STEP). None = the model's own; in the
            engine LAST.
        use_activation: scale a vector to length 1, or make probabilities of labels' numbers.
            None = as the model's own; in the engine yes.
        dimensions: keep so many of the vector's first components; None = all.
        step_tag_id: the token at the end of each step, with pooling STEP.
        returned_token_ids: columns of labels that are kept, in order; None = all.
        truncate_prompt_tokens: as in `SamplingParams`.
    """

    task: PoolingTask | None = None
    pooling: Pooling | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None

    @property
    def of_tokens(self) -> bool:
        """Whether there is one vector a token."""
        return self.task in ("token_embed", "token_classify")

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequest(
                f"dimensions must be at least 1, got {self.dimensions}.", field="dimensions"
            )
        keep = self.truncate_prompt_tokens
        if keep is not None and (keep < -1 or keep == 0):
            raise InvalidRequest(
                f"truncate_prompt_tokens must be {_TRUNCATION_RANGE}, got {keep}.",
                field="truncate_prompt_tokens",
            )


class LoRARequest(msgspec.Struct, frozen=True):
    """An adapter for a request (vLLM's shape).

    Attributes:
        lora_name: shown in outputs and metrics.
        lora_int_id: at least 1; a number of the caller's.
        lora_path: folder of the adapter.
        base_model_name: for the caller; None = the model.
        load_inplace: read the files again, although this adapter has been used before.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise InvalidRequest(
                f"lora_int_id must be at least 1, got {self.lora_int_id}.", field="lora_int_id"
            )
        if not self.lora_path:
            raise InvalidRequest("lora_path cannot be empty.", field="lora_path")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def path(self) -> str:
        return self.lora_path

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id


class Adapter(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """An adapter that has been loaded. It is kept as long as a request refers to it.

    Attributes:
        load: the number of its load.
    """

    load: int
    lora_request: LoRARequest


class PromptEmbeds(msgspec.Struct, frozen=True):
    """Embedding rows of a prompt, in place of those of its token ids.

    Attributes:
        rows: float32 little-endian bytes [n, columns].
        positions: int32 bytes [n], where in the prompt each row stands; ascending.
        columns: numbers of a row.
    """

    rows: bytes
    positions: bytes
    columns: int

    def keys(self, block_size: int) -> dict[int, tuple[bytes]]:
        """A digest of what stands in each block of the prompt that has rows, by its index."""
        width = 4 * self.columns
        digests: dict[int, Any] = {}
        for i, position in enumerate(array("i", self.positions)):
            index, at = divmod(position, block_size)
            digest = digests.setdefault(index, hashlib.sha256())
            digest.update(at.to_bytes(4, "little") + self.rows[i * width : (i + 1) * width])
        return {index: (digest.digest(),) for index, digest in digests.items()}


class Request(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One sequence to compute, as the engine core sees it. Children of n>1 are separate requests.

    Attributes:
        handle: number chosen by the client, unique in (client_index); outputs carry it.
        request_id: text id for logs and metrics; children are ``"{i}_{parent}"``.
        prompt_token_ids: int32 little-endian bytes, at least one token.
        output_token_ids: int32 bytes, tokens already produced before an engine died (replay).
        params: kind of work: sampling, with `seed` filled in (frontend) and `n == 1`, or
            pooling.
        constraint: what its output must be, from `sampling.structured_outputs`.
        embeds: rows of its prompt that are not those of its token ids (which are 0 there).
        in_one_piece: its prompt is computed in one step and shares no blocks (each token sees the
            whole prompt, as in encoders).
        eos_token_ids: end-of-sequence ids of the model; a hit finishes with "stop" and no
            stop_reason, unless `sampling.ignore_eos`.
        bad_words_token_ids: tokenised `sampling.bad_words`.
        max_total_tokens: prompt + output length at which the request ends with "length".
        share_group: children of one parent share prompt blocks even without prefix caching;
            0 = none.
        cache_salt: extra key of the first block's hash.
        adapter: number of an adapter's load, in the hash of every block; 0 = none. Not to be used
            again by an engine that finds the blocks of the one before.
        client: whose request it is, where the scheduler is fair among clients.
        client_index, epoch: the front end, and the engine incarnation that it was sent to.
    """

    handle: int
    request_id: str
    prompt_token_ids: bytes
    params: SamplingParams | PoolingParams
    max_total_tokens: int
    output_token_ids: bytes = b""
    eos_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    arrival_time: float = 0.0
    priority: int = 0
    share_group: int = 0
    cache_salt: str | None = None
    adapter: int = 0
    constraint: Constraint | None = None
    embeds: PromptEmbeds | None = None
    in_one_piece: bool = False
    client: str = ""
    client_index: int = 0
    epoch: int = 0

    @property
    def sampling(self) -> SamplingParams:
        """Parameters of a request that samples."""
        assert isinstance(self.params, SamplingParams)
        return self.params

    @property
    def pools(self) -> bool:
        """Whether it ends with a vector of its prompt instead of tokens."""
        return isinstance(self.params, PoolingParams)
