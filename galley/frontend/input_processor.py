"""Turns a prompt and parameters into engine requests: tokenise, check, seed, fan out.

Every user error of a generation request is detected here; later stages do not check again. Knows
neither engine nor HTTP: the server and `LLM` both use it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from galley.config import EngineConfig, ModelInfo
from galley.config.pooling import PoolingSettings, hidden_size
from galley.config.structured import StructuredOutputsSettings
from galley.errors import InvalidRequest, Unsupported
from galley.frontend.caller import CALLER
from galley.frontend.prompts import ParsedPrompt, Prompt, parse_prompt
from galley.request import (
    Adapter,
    Constraint,
    PoolingParams,
    PromptEmbeds,
    Request,
    SamplingParams,
    StructuredOutputsParams,
)

if TYPE_CHECKING:
    from galley.runner.logits_processor import LogitsProcessor
    from galley.structured.check import ConstraintChecker

#: Handles carry the client's number above this bit, so that they are unique over all clients.
CLIENT_SHIFT = 40
#: vLLM's default of VLLM_MAX_N_SEQUENCES.
MAX_N_SEQUENCES = 16_384

_MASK = (1 << 64) - 1

TruncationSide = Literal["left", "right"]


class Encoder(Protocol):
    """The part of a tokenizer that is used here."""

    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(slots=True)
class Submission:
    """One call of generate: a prompt, its parameters and its n engine requests.

    Attributes:
        adapter: None too once the request has ended: a server may then close its file.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams | PoolingParams
    arrival_time: float
    requests: list[Request]
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that a request is checked against.

    Attributes:
        is_encoder: prompts are computed in one piece, and no text is generated.
        embed_columns: numbers of an embedding row; 0: prompts of such rows are refused.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    max_logprobs: int = 20
    max_n: int = MAX_N_SEQUENCES
    is_encoder: bool = False
    embed_columns: int = 0

    def check_max_tokens(self, max_tokens: int | None) -> None:
        """Raise InvalidRequest for more than the model's length."""
        if max_tokens is not None and max_tokens > self.max_model_len:
            raise InvalidRequest(
                f"max_tokens={max_tokens} cannot be greater than max_model_len="
                f"{self.max_model_len}. Please request fewer output tokens.",
                field="max_tokens",
            )


class InputProcessor:
    """Makes engine requests. `limits` may be replaced when an engine reports its real length.

    Args:
        tokenizer: None if none is loaded: prompts must then be token ids.
        seed: that of the engine; the seeds of requests without one are derived from it.
        client_index: number of this front end, part of every handle.
        structured: settings of --structured-outputs-config.
        pooling: defaults of requests that pool.
        processors: logits processors of the engine, which check `extra_args`.
    """

    def __init__(
        self,
        limits: Limits,
        tokenizer: Encoder | None,
        *,
        seed: int = 0,
        client_index: int = 0,
        structured: StructuredOutputsSettings | None = None,
        pooling: PoolingSettings | None = None,
        processors: Sequence[type[LogitsProcessor]] = (),
    ) -> None:
        self.limits = limits
        self.tokenizer = tokenizer
        self.seed = seed
        self.client_index = client_index
        self._structured = structured or StructuredOutputsSettings()
        self.pooling = pooling or PoolingSettings()
        self._processors = processors
        self._checker: ConstraintChecker | None = None
        self._arrivals = 0
        self._next_handle = (client_index << CLIENT_SHIFT) + 1

    def process(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        request_id: str,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
        add_special_tokens: bool = True,
        clip_max_tokens: bool = False,
        truncation_side: TruncationSide = "left",
        adapter: Adapter | None = None,
    ) -> Submission:
        """Check and prepare one prompt.

        Args:
            arrival_time: seconds of `time.time`; default now.
            add_special_tokens: the tokenizer's own (BOS …) are put around text prompts.
            clip_max_tokens: more tokens than the model's length, or a minimum above the room that
                the prompt leaves, are served to the model's length (offline); otherwise they are
                refused (HTTP).
            adapter: that answers; None = the model alone.
            truncation_side: where `truncate_prompt_tokens` removes tokens: "left" keeps the last.

        Raises:
            InvalidRequest, Unsupported: with the field at fault.
        """
        parsed = parse_prompt(prompt)
        constraint = None
        if isinstance(params, SamplingParams):
            self._check_params(params)
            if params.structured_outputs is not None:
                constraint = self.constraint_of(params.structured_outputs)
        else:
            params = self._with_defaults(params)
        embeds = None
        if parsed.get("embeds") is None:
            ids = self._token_ids(parsed["text"], parsed["token_ids"], add_special_tokens)
        else:
            embeds = self._embeds(parsed, params)
            ids = self._checked_ids(parsed["token_ids"] or [0] * (len(embeds.positions) // 4))
        keep = self._max_prompt_tokens(params)
        if keep is not None and len(ids) > keep:
            text = parsed["text"] if add_special_tokens and parsed["token_ids"] is None else None
            ids = self._truncated(ids, keep, truncation_side, text)
        if not ids:
            raise InvalidRequest("The decoder prompt cannot be empty.", field="prompt")
        if isinstance(params, PoolingParams):
            max_total = self._checked_length(len(ids))
        else:
            max_total = self._max_total_tokens(len(ids), params, clip_max_tokens)
        submission = Submission(
            request_id=request_id,
            prompt=parsed["text"],
            prompt_token_ids=ids,
            params=params,
            arrival_time=time.time() if arrival_time is None else arrival_time,
            requests=[],
            adapter=adapter,
        )
        self._fan_out(submission, max_total, priority, parsed["cache_salt"], constraint)
        if adapter is not None:
            for request in submission.requests:
                request.adapter = adapter.load
        if embeds is not None:
            for request in submission.requests:
                request.embeds = embeds
        return submission

    def knows(self, params: StructuredOutputsParams) -> bool:
        """Whether `constraint_of` answers at once."""
        if params.num_written:
            params = msgspec.structs.replace(params, num_written=0)
        return self._checker is not None and self._checker.known(params) is not None

    def constraint_of(self, params: StructuredOutputsParams) -> Constraint:
        """The checked constraint. The first time it may take long: a server calls this in a thread
        before it calls `process`.

        Raises:
            InvalidRequest, Unsupported: with the field at fault.
        """
        if self.tokenizer is None:
            raise Unsupported(
                "structured output needs a tokenizer, and none is loaded (--skip-tokenizer-init).",
                field="structured_outputs",
            )
        if not self.limits.eos_token_ids:
            raise Unsupported(
                "structured output needs an end-of-sequence token, and the model names none.",
                field="structured_outputs",
            )
        if self._checker is None:
            from galley.structured.check import ConstraintChecker

            self._checker = ConstraintChecker(self._structured)
        if params.structural_tag is not None:
            params = self._with_token_ids(params, params.structural_tag)
        if not params.num_written:
            return self._checker.check(params)
        constraint = self._checker.check(msgspec.structs.replace(params, num_written=0))
        return msgspec.structs.replace(constraint, num_written=params.num_written)

    def _with_token_ids(self, params: StructuredOutputsParams, tag: str) -> StructuredOutputsParams:
        from galley.structured.tag_tokens import numbered  # only where there is a structural tag

        tokenizer = self.tokenizer
        assert tokenizer is not None
        tag = numbered(tag, tokenizer.token_to_id, tokenizer.special_ids, params.field_name)
        return msgspec.structs.replace(params, structural_tag=tag)

    # ------------------------------------------------------------------ prompt

    def _token_ids(
        self,
        text: str | None,
        token_ids: Sequence[int] | None,
        add_special_tokens: bool,
    ) -> list[int]:
        if token_ids is not None:
            ids = self._checked_ids(token_ids)
        elif self.tokenizer is None:
            raise InvalidRequest(
                "no tokenizer is loaded (--skip-tokenizer-init): the prompt must be token ids.",
                field="prompt",
            )
        else:
            assert text is not None
            ids = self.tokenizer.encode(text, add_special_tokens)
        return ids

    def _embeds(self, parsed: ParsedPrompt, params: SamplingParams | PoolingParams) -> PromptEmbeds:
        field = "prompt_embeds"
        if not self.limits.embed_columns:
            raise Unsupported(f"{field} needs --enable-prompt-embeds.", field=field)
        if isinstance(params, PoolingParams):
            raise Unsupported(f"{field} is not supported by requests that pool.", field=field)
        for name in ("prompt_logprobs", "truncate_prompt_tokens"):
            if getattr(params, name) is not None:
                raise Unsupported(f"{name} is not supported with {field}.", field=name)
        from galley.frontend.prompt_embeds import prompt_embeds  # numpy: for such prompts alone

        ids, limits = parsed["token_ids"], self.limits
        return prompt_embeds(
            parsed["embeds"],
            parsed.get("embeds_at"),
            None if ids is None else len(ids),
            limits.embed_columns,
            limits.max_model_len,
        )

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        try:
            ids = array("q", token_ids).tolist()
        except (TypeError, OverflowError) as e:
            raise InvalidRequest("prompt token ids must be integers.", field="prompt") from e
        if ids:
            worst = max(ids) if min(ids) >= 0 else min(ids)
            if not 0 <= worst < self.limits.vocab_size:
                raise InvalidRequest(
                    f"Token id {worst} is out of vocabulary (size {self.limits.vocab_size}).",
                    field="prompt",
                )
        return ids

    def _truncated(
        self, ids: list[int], keep: int, side: TruncationSide, text: str | None
    ) -> list[int]:
        """`keep` of the tokens. On the right the tokenizer's own ones after `text` stay."""
        if side == "left":
            return ids[len(ids) - keep :]
        behind = 0 if text is None else self._num_special_behind(ids, text)
        if behind >= keep:
            return ids[:keep]
        return ids[: keep - behind] + ids[len(ids) - behind :]

    def _num_special_behind(self, ids: list[int], text: str) -> int:
        """The number of tokens that the tokenizer has put behind those of `text`."""
        assert self.tokenizer is not None
        plain = self.tokenizer.encode(text, False)
        added = len(ids) - len(plain)
        starts = (at for at in range(added + 1) if ids[at : at + len(plain)] == plain)
        return added - next(starts, added)

    def _max_prompt_tokens(self, params: SamplingParams | PoolingParams) -> int | None:
        """How many tokens of the prompt stay; None = all."""
        keep, length = params.truncate_prompt_tokens, self.limits.max_model_len
        if keep is None:
            return None
        output = 0 if isinstance(params, PoolingParams) else params.max_tokens or 1
        room = length - output
        if keep == -1:
            return max(room, 1)
        if keep > length:
            raise InvalidRequest(
                f"truncate_prompt_tokens={keep} cannot be greater than max_model_len={length}. "
                "Please request a smaller truncation size.",
                field="truncate_prompt_tokens",
            )
        return keep

    def _checked_length(self, num_prompt: int) -> int:
        """The length of a prompt that pools, which may be the model's."""
        length = self.limits.max_model_len
        if num_prompt > length:
            raise InvalidRequest(
                f"This model's maximum context length is {length} tokens, but the prompt has "
                f"{num_prompt} tokens. Please reduce the length of the input prompt.",
                field="prompt",
            )
        return num_prompt

    def _max_total_tokens(self, num_prompt: int, params: SamplingParams, clip: bool) -> int:
        """Prompt + output tokens at which the request ends: max_tokens, limited by the model's
        length.
        """
        length, max_tokens = self.limits.max_model_len, params.max_tokens
        room = length - num_prompt
        if room < 1:
            raise InvalidRequest(
                f"This model's maximum context length is {length} tokens, but the prompt has "
                f"{num_prompt} tokens, which leaves no room for an answer. Please reduce the "
                "length of the input prompt.",
                field="prompt",
            )
        if not clip:
            self.limits.check_max_tokens(max_tokens)
        num_output = room if max_tokens is None else min(max_tokens, room)
        if params.min_tokens > num_output and not clip:
            raise InvalidRequest(
                f"min_tokens={params.min_tokens} is above the {num_output} tokens that this "
                "request can produce.",
                field="min_tokens",
            )
        return num_prompt + num_output

    # ------------------------------------------------------------------ parameters

    def _with_defaults(self, params: PoolingParams) -> PoolingParams:
        """`params` with the model's own pooling where they name none. Raises InvalidRequest."""
        return self.pooling.filled(params)

    def _check_params(self, params: SamplingParams) -> None:
        limits = self.limits
        if limits.is_encoder:
            raise Unsupported(
                "This model is an encoder: it gives vectors of prompts and generates no text.",
                field="model",
            )
        if params.n > limits.max_n:
            raise InvalidRequest(f"n must be at most {limits.max_n}, got {params.n}.", field="n")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is None or limits.max_logprobs == -1:
                continue
            count = limits.vocab_size if count == -1 else count
            if count > limits.max_logprobs:
                raise InvalidRequest(
                    f"{name} asks for {count} candidates, which is more than the "
                    f"{limits.max_logprobs} allowed (--max-logprobs).",
                    field=name,
                )
        for name in ("allowed_token_ids", "logit_bias", "logprob_token_ids"):
            outside = [i for i in getattr(params, name) or () if not 0 <= i < limits.vocab_size]
            if outside:
                raise InvalidRequest(
                    f"{name} contains token ids outside the vocabulary (size "
                    f"{limits.vocab_size}): {outside[:8]}.",
                    field=name,
                )
        if self.tokenizer is None:
            self._check_without_tokenizer(params)
        self._check_extra_args(params)

    def _check_extra_args(self, params: SamplingParams) -> None:
        if params.extra_args and not self._processors:
            raise Unsupported(
                "extra_args (vllm_xargs) are for logits processors, and this engine has none "
                "(--logits-processors).",
                field="vllm_xargs",
            )
        for processor in self._processors:
            try:
                processor.validate_params(params)
            except ValueError as e:
                raise InvalidRequest(str(e), field="vllm_xargs") from e

    @staticmethod
    def _check_without_tokenizer(params: SamplingParams) -> None:
        for name in ("stop", "bad_words"):
            if getattr(params, name):
                raise Unsupported(
                    f"{name} needs a tokenizer, and none is loaded (--skip-tokenizer-init).",
                    field=name,
                )

    def _bad_words(self, words: list[str] | None) -> list[list[int]]:
        """Token ids of each word at the start of a text and after a space.

        The second form counts only where the space merges into the word's first token: otherwise
        the word itself is already covered by the first.
        """
        sequences: list[list[int]] = []
        for word in words or ():
            assert self.tokenizer is not None
            bare = self.tokenizer.encode(word.lstrip(), False)
            spaced = self.tokenizer.encode(" " + word.lstrip(), False)
            if bare:
                sequences.append(bare)
            if spaced and len(spaced) == len(bare) and spaced[0] != bare[0]:
                sequences.append(spaced)
        return sequences

    # ------------------------------------------------------------------ requests

    def _fan_out(
        self,
        submission: Submission,
        max_total: int,
        priority: int,
        cache_salt: str | None,
        constraint: Constraint | None,
    ) -> None:
        params, limits = submission.params, self.limits
        if isinstance(params, PoolingParams):
            self._add_pooling(submission, params, max_total, priority, cache_salt)
            return
        seed = self._seed(params)
        packed = array("i", submission.prompt_token_ids).tobytes()
        stop_ids = params.stop_token_ids
        if stop_ids:
            # An id outside the vocabulary can never be sampled.
            stop_ids = [i for i in stop_ids if 0 <= i < limits.vocab_size]
        bad_words = self._bad_words(params.bad_words)
        first = self._next_handle
        for i in range(params.n):
            sampling = msgspec.structs.replace(
                params,
                n=1,
                seed=None if seed is None else _signed64(seed + i),
                stop=None,
                stop_token_ids=stop_ids,
                bad_words=None,
                structured_outputs=None,
                truncate_prompt_tokens=None,
            )
            submission.requests.append(
                Request(
                    handle=first + i,
                    request_id=submission.request_id
                    if params.n == 1
                    else f"{i}_{submission.request_id}",
                    prompt_token_ids=packed,
                    params=sampling,
                    max_total_tokens=max_total,
                    eos_token_ids=list(limits.eos_token_ids),
                    bad_words_token_ids=bad_words,
                    arrival_time=submission.arrival_time,
                    priority=priority,
                    share_group=first if params.n > 1 else 0,
                    cache_salt=cache_salt,
                    constraint=constraint,
                    client=CALLER.get(),
                    client_index=self.client_index,
                )
            )
        self._next_handle += params.n

    def _add_pooling(
        self,
        submission: Submission,
        params: PoolingParams,
        max_total: int,
        priority: int,
        cache_salt: str | None,
    ) -> None:
        submission.requests.append(
            Request(
                handle=self._next_handle,
                request_id=submission.request_id,
                prompt_token_ids=array("i", submission.prompt_token_ids).tobytes(),
                params=msgspec.structs.replace(params, truncate_prompt_tokens=None),
                max_total_tokens=max_total,
                arrival_time=submission.arrival_time,
                priority=priority,
                cache_salt=cache_salt,
                in_one_piece=self.limits.is_encoder,
                client=CALLER.get(),
                client_index=self.client_index,
            )
        )
        self._next_handle += 1

    def _seed(self, params: SamplingParams) -> int | None:
        """The request's own seed, or one chosen now, so that a replay samples the same tokens."""
        self._arrivals += 1
        own = None if params.seed == -1 else params.seed
        if own is not None or params.temperature == 0.0:
            return own
        return derived_seed(self.seed, self.client_index, self._arrivals)


def derived_seed(engine_seed: int, client_index: int, arrival: int) -> int:
    """A seed from the engine's seed and a request's number (SplitMix64): 52 bits, exact also in
    clients whose numbers are floating point.
    """
    x = engine_seed & _MASK
    for part in (client_index, arrival):
        x = (x + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 12


def _signed64(x: int) -> int:
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def limits_of(
    config: EngineConfig,
    model_info: ModelInfo,
    max_n: int = MAX_N_SEQUENCES,
    end_ids: Iterable[int] = (),
) -> Limits:
    """The limits of a resolved configuration; -1 (fit to memory) counts as the model's length.

    A sequence ends at the end tokens of the model's config, and at the tokenizer's `end_ids`.
    """
    ends = dict.fromkeys((*model_info.eos_token_ids, *sorted(end_ids)))
    length = config.model.max_model_len
    return Limits(
        vocab_size=model_info.vocab_size * (2 if model_info.has_segments else 1),
        max_model_len=model_info.max_position if length is None or length == -1 else length,
        eos_token_ids=tuple(i for i in ends if i < model_info.vocab_size),
        max_logprobs=config.model.max_logprobs,
        max_n=max_n,
        is_encoder=model_info.is_encoder,
        embed_columns=(hidden_size(model_info.hf_config) or 0)
        if config.model.enable_prompt_embeds
        else 0,
    )


#: generation_config.json key → SamplingParams field.
_GENERATION_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


#: Of the built-in model, whose GGUF file names none. With the recommended top_p of 0.9 five of 16
#: answers to "What is the capital of France?" are in broken French, with 0.5 none.
BUILT_IN_SAMPLING = {"temperature": 0.2, "top_p": 0.5}


def default_sampling_params(config: EngineConfig, model_info: ModelInfo) -> dict[str, Any]:
    """Sampling defaults by `SamplingParams` field, for what a request does not set.

    They come from the model's generation_config.json (the built-in model has its own), from that of
    another folder, or from nowhere (--generation-config); --override-generation-config wins.

    Raises:
        ModelError: the folder has no usable generation_config.json.
    """
    source = config.model.generation_config
    if source == "auto":
        built_in = BUILT_IN_SAMPLING if not config.model.model else {}
        values = {**built_in, **model_info.generation}
    elif source == "vllm":
        values = {}
    else:
        from galley.loader.hf_info import read_generation_config

        values = read_generation_config(Path(source))
    values.update(config.model.override_generation_config)
    return {
        field: values[key]
        for key, field in _GENERATION_FIELDS.items()
        if values.get(key) is not None
    }
