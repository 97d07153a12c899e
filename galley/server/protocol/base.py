"""Wire types shared by several API families, and the reader of bodies.

A request type is a `msgspec.Struct` of the fields that act. A table (`fields.py`) says how the
other fields of the API are treated; unknown fields are ignored with a warning. This module knows
nothing of HTTP: bytes in, a checked value or a `ClientError` out.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.validation import allowed_values, locate

logger = logging.getLogger(__name__)

#: Integers that fit the engine's 64-bit columns; larger ones are refused while reading.
Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

T = TypeVar("T", bound=msgspec.Struct)

#: Key of a request's scope: its unknown fields, each with the known one that it resembles, or "".
IGNORED = "galley.ignored_fields"


def ignored_of(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The table in a request's scope that collects its unknown fields."""
    found: dict[str, str] = scope.setdefault(IGNORED, {})
    return found


@dataclass(frozen=True)
class NoEffect:
    """The field is accepted and changes nothing: `type` is its type, `why` the reason."""

    type: Any
    why: str


@dataclass(frozen=True)
class Refused:
    """The field would change the answer and cannot yet: `inert` values ask for nothing.

    Attributes:
        always: every value asks for something.
    """

    why: str
    inert: tuple[Any, ...] = ()
    always: bool = False

    def asks(self, value: Any) -> bool:
        """Whether `value` asks for something (null, false and empty values do not)."""
        if self.always:
            return True
        if value is None or value is False or value in ("", [], {}):
            return False
        return not any(type(value) is type(i) and value == i for i in self.inert)


FieldTable = Mapping[str, NoEffect | Refused]


class BodyReader(Generic[T]):
    """Reads JSON bodies of one request type.

    Args:
        type: the struct of the fields that act.
        others: the fields of the API that do not act.

    A whole number may be spelt as a float, as in vLLM: `16.0` is 16.
    """

    def __init__(self, type: type[T], others: FieldTable) -> None:
        self.type = type
        self.others = others
        self.fields = frozenset(f.encode_name for f in msgspec.structs.fields(type))
        self._keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._decoder = msgspec.json.Decoder(type)
        self._lax = msgspec.json.Decoder(type, strict=False)
        self._warned: set[str] = set()

    def read(self, body: bytes, ignored: dict[str, str] | None = None) -> T:
        """The request in `body`; adds its unknown fields to `ignored`, with what they resemble.

        Raises:
            InvalidRequest: not JSON, not an object, or a field of the wrong type; names the field.
            Unsupported: a field asks for what this server does not do; names the field.
        """
        values = _decode(self._keys, body)
        for name in values.keys() - self.fields:
            self._check_other(name, values[name])
            if ignored is not None and name not in self.others:
                ignored[name] = self._like(name)
        request = _decode(self._decoder, body, self._lax)
        assert isinstance(request, self.type)
        return request

    def _check_other(self, name: str, raw: msgspec.Raw) -> None:
        field = self.others.get(name)
        type = field.type if isinstance(field, NoEffect) else Any
        try:
            value = _with_floats(
                msgspec.json.Decoder(type), raw, msgspec.json.Decoder(type, strict=False)
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise InvalidRequest(f"{name:.100}: {e}", field=name[:100]) from e
        if field is None:
            self._warn_unknown(name)
        elif isinstance(field, Refused) and field.asks(value):
            raise Unsupported(f"{name} is not supported: {field.why}", field=name)

    def _warn_unknown(self, name: str) -> None:
        """Log each name once, and at most 1,000 names."""
        if name not in self._warned and len(self._warned) < 1000:
            self._warned.add(name)
            of, hint = self.type.__name__, suggestion(self._like(name))
            logger.warning("%s: the field %.100r is unknown and ignored.%s", of, name, hint)

    def _like(self, name: str) -> str:
        """The field that `name` resembles, or ""."""
        return next(iter(difflib.get_close_matches(name[:100], self.fields, 1, 0.75)), "")


def suggestion(near: str) -> str:
    """A sentence that asks whether `near` was meant; "" where nothing resembles the name."""
    return f" Did you mean {near}?" if near else ""


def _with_floats(strict: Any, body: bytes | msgspec.Raw, lax: Any) -> Any:
    """Decode with `strict`; if it finds a float for an integer, with `lax`, which takes 16.0 for 16
    (and also "16")."""
    try:
        return strict.decode(body)
    except msgspec.ValidationError as e:
        if "`int" in str(e) and "got `float`" in str(e):
            return lax.decode(body)
        raise


def _decode(decoder: Any, body: bytes, lax: Any = None) -> Any:
    try:
        return decoder.decode(body) if lax is None else _with_floats(decoder, body, lax)
    except msgspec.ValidationError as e:
        message, field = explain(str(e), decoder.type)
        if "at `key` in" in str(e) and field is not None:
            message = _with_key(message, field, body)
        raise InvalidRequest(message, field=field) from e
    except msgspec.DecodeError as e:
        raise InvalidRequest(f"The request body is not valid JSON: {e}") from e
    except UnicodeDecodeError as e:
        raise InvalidRequest("The request body is not valid UTF-8.") from e
    except RecursionError as e:
        raise InvalidRequest("The request body is nested too deeply.") from e


def _with_key(message: str, field: str, body: bytes) -> str:
    """The sentence with the first key that is no number, for a field of keys that are numbers."""
    given = msgspec.json.decode(body).get(field)
    keys = given if isinstance(given, dict) else {}
    wrong = next((key for key in keys if not re.fullmatch(r"-?\d{1,18}", key)), None)
    return message if wrong is None else f"{field}: the key {wrong[:100]!r} is no whole number."


#: Parts of msgspec's sentences → types of vLLM's errors, which programs look for.
_ERROR_TYPES = {
    " >= ": "greater_than_equal",
    " <= ": "less_than_equal",
    "enum value": "literal_error",
}
#: Python's types in msgspec's sentences → JSON's.
_JSON_TYPES = {"bool": "boolean", "float": "number", "int": "integer", "str": "string"}


def explain(message: str, type: Any) -> tuple[str, str | None]:
    """msgspec's sentence about a value of a type, with the field in front, the values that are
    allowed, and JSON's names of types: ("n: Expected `integer`, got `string`.", "n").
    """
    message = re.sub(
        r"`[a-z| ]+`",
        lambda types: re.sub(r"\w+", lambda word: _JSON_TYPES.get(word[0], word[0]), types[0]),
        message,
    )
    missing = re.fullmatch(r"Object missing required field `(\w+)`(?: - at `\$(.*)`)?", message)
    if missing:
        field = f"{missing[2] or ''}.{missing[1]}".lstrip(".")
        return f"{field}: Field required.", re.split(r"[.\[]", field)[0]
    what, path = locate(message)
    what += "".join(f" ({name})" for part, name in _ERROR_TYPES.items() if part in what)
    if path is None:
        return f"The request body must be a JSON object: {message}.", None
    if what.startswith("Invalid") and (allowed := allowed_values(type, path)):
        what += f"; expected one of {', '.join(map(repr, allowed))}"
    field = path.replace("[...]", "")
    return f"{field}: {what}.", re.split(r"[.\[]", field)[0] or None


class StreamOptions(msgspec.Struct):
    """Options of a stream: reports besides its deltas."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False

    @property
    def continuous(self) -> bool:
        """Whether every event reports usage."""
        return bool(self.include_usage and self.continuous_usage_stats)


class PerRequestMetrics(msgspec.Struct):
    """Durations of a request's phases (--enable-per-request-metrics; null: not reached), and its
    drafts (--per-request-spec-decode-metrics).
    """

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None
    speculative_decoding: dict[str, Any] | None = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a whole answer."""

    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ErrorInfo(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(msgspec.Struct):
    error: ErrorInfo


class PromptLogprob(msgspec.Struct):
    """One candidate for a prompt position."""

    logprob: float
    rank: int | None
    decoded_token: str | None
