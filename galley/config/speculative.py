"""`SpeculativeSettings`: the values of --speculative-config, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from galley.config.registries import PROPOSERS
from galley.errors import ConfigError
from galley.validation import locate

_FIELD = "speculative_config"
#: Other names of a method.
ALIASES = {
    "ngram_gpu": "ngram",
    "deepseek_mtp": "mtp",
    "glm4_moe_mtp": "mtp",
    "mimo_mtp": "mtp",
    "qwen3_next_mtp": "mtp",
    "[ngram]": "ngram",
}
#: Methods of vLLM 0.32 that need weights which are not read yet.
_NOT_YET = ("dflash", "dspark", "extract_hidden_states")
#: Keys of vLLM that have no effect here: value that they may have → all others are refused.
_ONLY: dict[str, Any] = {
    "draft_tensor_parallel_size": 1,
    "tensor_parallel_size": 1,
    "rejection_sample_method": "standard",
    "draft_sample_method": "greedy",
    "disable_padded_drafter_batch": False,
    "disable_eagle_block_drop": False,
    "use_local_argmax_reduction": False,
    "use_heterogeneous_vocab": False,
}
#: Keys of vLLM about a drafter's weights.
_OF_MODELS = (
    *("quantization", "moe_backend", "attention_backend", "kv_cache_dtype", "max_model_len"),
    *("code_revision", "index_share_for_mtp_iteration", "draft_load_config"),
    *("synthetic_acceptance_rates", "synthetic_acceptance_length", "dspark_draft_topk"),
    *("enforce_eager",),
)
#: Most drafts of a sequence and step: without num_speculative_tokens, and at all.
DEFAULT_DRAFTS, MOST_DRAFTS = 15, 63
MOST_MATCH = 64
_LONGEST_MIN = 16

Method = Literal[
    "ngram",
    "suffix",
    "draft_model",
    "medusa",
    "mlp_speculator",
    "eagle",
    "eagle3",
    "mtp",
    "custom_class",
    "auto",
]
#: Methods that need a `model`, and those that may have one.
_WITH_MODEL = ("draft_model", "medusa", "mlp_speculator", "eagle", "eagle3", "custom_class", "auto")
_MAY_HAVE_MODEL = (*_WITH_MODEL, "mtp")


class SpeculativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's `SpeculativeConfig`, as far as it acts, and `draft_length`.

    Attributes:
        method: a key of `registries.PROPOSERS`; "auto": what the drafter's name or config says.
        model: of custom_class: module.Class; of others: like --model. None with mtp: the model
            itself.
        revision: of a model of the hub.
        num_speculative_tokens: most drafts of a sequence and step; None = `DEFAULT_DRAFTS`.
        draft_length: "adaptive": as many as make the answers fastest, by measured acceptance and
            cost; "fixed": all that are proposed.
        parallel_drafting: of draft_model: all drafts in one pass; None = if its config says how.
        num_speculative_tokens_per_batch_size: (from, to, most drafts) by sequences of a step; none
            where no range fits. Empty: one limit for all.
        prompt_lookup_min, prompt_lookup_max: of ngram: tokens that must, and may, match.
        suffix_decoding_max_tree_depth: of suffix: tokens that may match.
        suffix_decoding_max_cached_requests: of suffix: recent outputs that are kept; 0 = none.
        suffix_decoding_max_spec_factor: of suffix: most drafts per matching token.
        suffix_decoding_min_token_prob: of suffix: least estimated chance of a draft.
    """

    method: Method
    model: str | None = None
    revision: str | None = None
    num_speculative_tokens: int | None = None
    draft_length: Literal["adaptive", "fixed"] = "adaptive"
    parallel_drafting: bool | None = None
    num_speculative_tokens_per_batch_size: tuple[tuple[int, int, int], ...] = ()
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None
    suffix_decoding_max_tree_depth: int = 24
    suffix_decoding_max_cached_requests: int = 10_000
    suffix_decoding_max_spec_factor: float = 1.0
    suffix_decoding_min_token_prob: float = 0.1

    @property
    def most_drafts(self) -> int:
        """Most drafts of a sequence and step."""
        most = self.num_speculative_tokens or DEFAULT_DRAFTS
        by_batch = [most for _, _, most in self.num_speculative_tokens_per_batch_size]
        return max(by_batch) if by_batch and self.num_speculative_tokens is None else most

    @property
    def lookup_range(self) -> tuple[int, int]:
        """Tokens that must, and may, match."""
        if self.method == "suffix":
            return 2, self.suffix_decoding_max_tree_depth
        low, high = self.prompt_lookup_min or 1, self.prompt_lookup_max
        return low, max(16, low) if high is None else high


#: Without a configuration.
BY_DEFAULT: SpeculativeSettings | None = None


def speculative_settings(
    given: Mapping[str, Any], method: str | None, model: str | None, tokens: int | None
) -> SpeculativeSettings | None:
    """The settings of --speculative-config and of the short flags; None: no speculation.

    Raises:
        ConfigError: naming the key.
    """
    keys = {name.replace("-", "_"): value for name, value in given.items()}
    short = {"method": method, "model": model, "num_speculative_tokens": tokens}
    for name, value in short.items():
        if value is None:
            continue
        if name in keys:
            raise _fault(f".{name} and its short flag exclude each other; give one of them")
        keys[name] = value
    if not keys:
        return BY_DEFAULT
    keys = {name: value for name, value in keys.items() if value is not None}
    keys["method"] = _method(keys.get("method"), keys.get("model"))
    if keys["method"] == "none":
        return None
    if keys.get("model") == f"[{keys['method']}]":
        del keys["model"]
    _drop_without_effect(keys)
    try:
        settings = msgspec.convert(keys, SpeculativeSettings)
    except msgspec.ValidationError as error:
        what, path = locate(str(error))
        raise _fault(f"{'.' + path if path else ''}: {what[:1].lower()}{what[1:]}") from None
    _check(settings)
    return settings


def _method(method: Any, model: Any) -> str:
    """The method's own name. Raises ConfigError for one that is unknown or not supported."""
    if method is None:
        method = ALIASES.get(str(model), "auto") if model is not None else "ngram"
    method = ALIASES.get(method, method)
    if method == "auto" and model is not None:
        return "auto"
    if method == "none" or method in PROPOSERS:
        return str(method)
    known = ", ".join(PROPOSERS)
    if method in _NOT_YET or str(method).endswith("_mtp"):
        raise _fault(f".method {method!r} is not supported yet; there are {known}")
    raise _fault(f".method must be one of {known}; got {method!r}")


def _drop_without_effect(keys: dict[str, Any]) -> None:
    """Remove keys with the one value that they may have. Raises ConfigError for others."""
    for name, only in _ONLY.items():
        if name in keys and keys.pop(name) != only:
            raise _fault(f".{name} must be {only!r} in this version")
    for name in _OF_MODELS:
        if name in keys:
            raise _fault(f".{name} is not supported with {keys['method']}")
    if (adaptive := keys.pop("enable_adaptive_verification", None)) is not None:
        keys.setdefault("draft_length", "adaptive" if adaptive else "fixed")


def _check(s: SpeculativeSettings) -> None:
    ranges = s.num_speculative_tokens_per_batch_size
    low, high = s.lookup_range
    longest = MOST_MATCH
    for name, value, least, most in (
        ("num_speculative_tokens", s.num_speculative_tokens, 1, MOST_DRAFTS),
        ("prompt_lookup_min", s.prompt_lookup_min, 1, _LONGEST_MIN),
        ("prompt_lookup_max", s.prompt_lookup_max, 1, longest),
        ("suffix_decoding_max_tree_depth", s.suffix_decoding_max_tree_depth, 2, longest),
        (
            *("suffix_decoding_max_cached_requests", s.suffix_decoding_max_cached_requests),
            *(0, 1 << 20),
        ),
        ("suffix_decoding_max_spec_factor", s.suffix_decoding_max_spec_factor, 0.01, 64),
        ("suffix_decoding_min_token_prob", s.suffix_decoding_min_token_prob, 0, 1),
    ):
        if value is not None and not least <= value <= most:
            raise _fault(f".{name} must be in {least} … {most}, got {value}")
    if low > high:
        raise _fault(f".prompt_lookup_min ({low}) is above prompt_lookup_max ({high})")
    for first, last, drafts in ranges:
        if not 1 <= first <= last or not 0 <= drafts <= MOST_DRAFTS:
            raise _fault(
                ".num_speculative_tokens_per_batch_size has entries [from, to, drafts] with "
                f"1 <= from <= to and drafts in 0 … {MOST_DRAFTS}; got [{first}, {last}, {drafts}]"
            )
    if s.method in _WITH_MODEL and s.model is None:
        raise _fault(
            ".model is the module.Class of a proposer with custom_class, a directory or hub name "
            "of draft heads, and with draft_model a directory, .gguf file or hub name"
        )
    if s.parallel_drafting and s.method not in ("draft_model", "auto"):
        raise _fault(f".parallel_drafting is not supported with {s.method}")
    if s.method not in _MAY_HAVE_MODEL and (s.model or s.revision):
        raise _fault(f".model and .revision have no effect: {s.method} has no weights")


def _fault(what: str) -> ConfigError:
    return ConfigError(f"--speculative-config{what}.", field=_FIELD)
