"""Request fields that chat and completions share, and checks across fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from galley.errors import InvalidRequest
from galley.request import (
    RepetitionDetectionParams,
    StructuredOutputs,
    StructuredOutputsParams,
)
from galley.server.protocol.base import Int, StreamOptions
from galley.server.protocol.structured import (
    OLDER,
    ResponseFormat,
    TextFormat,
    params_of_format,
    warn_older,
)


def _schema_limits(**limits: float) -> msgspec.Meta:
    """Limits that only the API's description shows: they are checked later, with messages of their
    own. In an `allOf`, because those of `Int` would hide them.
    """
    return msgspec.Meta(extra_json_schema={"allOf": [limits]})


Count = Annotated[Int, _schema_limits(minimum=0)]
CountOrAll = Annotated[Int, _schema_limits(minimum=-1)]
Positive = Annotated[Int, _schema_limits(minimum=1)]
Temperature = Annotated[float, _schema_limits(minimum=0)]
Share = Annotated[float, _schema_limits(minimum=0, maximum=1)]
PositiveShare = Annotated[float, _schema_limits(exclusiveMinimum=0, maximum=1)]
Penalty = Annotated[float, _schema_limits(minimum=-2, maximum=2)]
Factor = Annotated[float, _schema_limits(exclusiveMinimum=0)]
Text = Annotated[str, _schema_limits(minLength=1)]
#: Arguments of logits processors (vLLM's type).
ExtraArgs = dict[str, str | int | float | list[str | int | float]]


class SamplingFields(msgspec.Struct, kw_only=True):
    """Sampling and stop fields of every endpoint that generates, except Anthropic's."""

    temperature: Temperature | None = None
    top_p: PositiveShare | None = None
    top_k: CountOrAll | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Factor | None = None
    seed: Int | None = None
    stop: str | list[Text] | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool = False
    repetition_detection: RepetitionDetectionParams | None = None
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    logit_bias: dict[Int, float] | None = None
    vllm_xargs: ExtraArgs | None = None
    stream: bool | None = False
    model: str | None = None
    priority: Int = 0
    cache_salt: Text | None = None
    request_id: str | None = None
    speculative: bool = True


class StructuredFields(SamplingFields, kw_only=True):
    """Fields of chat and completions that ask for a form of the text.

    Attributes:
        format_field: what the API calls `response_format`.
    """

    format_field: ClassVar[str] = "response_format"

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    @property
    def constraint_field(self) -> str | None:
        """The field that brings a constraint; None: any text will do.

        Raises InvalidRequest if there are two.
        """
        format = self.response_format
        fields = [name for name in OLDER if getattr(self, name) is not None]
        if self.structured_outputs is not None:
            fields.append("structured_outputs")
        if format is not None and not isinstance(format, TextFormat):
            fields.append(self.format_field)
        if len(fields) > 1:
            raise InvalidRequest(f"{fields[0]} excludes {fields[1]}.", field=fields[1])
        return fields[0] if fields else None

    def structured_params(self) -> StructuredOutputsParams | None:
        """The constraint on the answer; None: any text. Raises InvalidRequest naming the field."""
        name = self.constraint_field
        if name is None:
            return None
        try:
            return StructuredOutputsParams(**self._constraint(name))
        except InvalidRequest as error:
            raise InvalidRequest(error.message, field=name) from None

    def _constraint(self, name: str) -> dict[str, Any]:
        if name == self.format_field:
            constraint = params_of_format(self.response_format)
            inside = "json_schema.schema" if name == "response_format" else "format.schema"
            return {**constraint, "source": f"{name}.{inside}" if "json" in constraint else name}
        if name == "structured_outputs":
            assert self.structured_outputs is not None
            return msgspec.structs.asdict(self.structured_outputs)
        warn_older(name)
        pattern = self.guided_whitespace_pattern
        constraint = {OLDER[name]: getattr(self, name), "whitespace_pattern": pattern}
        return {**constraint, "source": name}


class GenerationFields(StructuredFields, kw_only=True):
    """Fields of both generation endpoints (vLLM's names, types and defaults).

    Attributes:
        return_token_offsets: of a prompt that is rendered.
    """

    n: Positive | None = 1
    stream_options: StreamOptions | None = None
    stream_interval: Positive | None = None
    echo: bool | None = False
    max_tokens: Count | None = None
    min_tokens: Count = 0
    allowed_token_ids: list[Int] | None = None
    bad_words: list[Text] | None = None
    use_beam_search: bool = False
    length_penalty: float | None = 1.0
    prompt_logprobs: CountOrAll | None = None
    logprob_token_ids: list[Int] | None = None
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: CountOrAll | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_token_offsets: bool | None = None
    return_seed: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous


class Caps(msgspec.Struct, frozen=True):
    """Limits of one call (`VLLM_MAX_*`)."""

    n: int = 16_384
    prompts: int = 1024
    stop_strings: int = 4
    bad_words: int = 128
    bad_words_tokens: int = 1024
    logit_bias: int = 1024
    request_id: int = 256


def check_generation(request: GenerationFields, caps: Caps) -> None:
    """Raise `InvalidRequest` for fields that are over a cap or contradict each other.

    Ranges of single sampling fields are `SamplingParams.verify`'s.
    """
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    for name, size, cap in (
        ("n", request.n or 1, caps.n),
        ("stop", len(stop), caps.stop_strings),
        ("bad_words", len(request.bad_words or ()), caps.bad_words),
        ("logit_bias", len(request.logit_bias or ()), caps.logit_bias),
        ("request_id", len(request.request_id or ""), caps.request_id),
    ):
        if size > cap:
            raise InvalidRequest(f"{name} is limited to {cap}, got {size}.", field=name)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "Stream options can only be defined when `stream=True`.", field="stream_options"
        )
    if request.prompt_logprobs is not None:
        if request.prompt_logprobs < -1:
            raise InvalidRequest(
                "`prompt_logprobs` must be a non-negative value or -1.", field="prompt_logprobs"
            )
        if request.stream and request.prompt_logprobs != 0:
            raise InvalidRequest(
                "`prompt_logprobs` are not available when `stream=True`.", field="prompt_logprobs"
            )
    if request.logprob_token_ids and request.use_beam_search:
        raise InvalidRequest(
            "`logprob_token_ids` is not supported with beam search.", field="logprob_token_ids"
        )
    if request.cache_salt == "":
        raise InvalidRequest(
            "`cache_salt` must be a non-empty string if provided.", field="cache_salt"
        )
