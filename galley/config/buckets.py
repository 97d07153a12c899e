"""--custom-histogram-buckets: the histogram families and the check of their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

from galley.errors import ConfigError

#: Histograms of one family have the same buckets.
BucketFamily = Literal[
    "request_latency",
    "time_to_first_token",
    "inter_token_latency",
    "iteration_tokens",
    "request_params_n",
    "request_num_preemptions",
    "request_tokens",
    "kv_cache_residency",
]


def check_buckets(buckets: Mapping[str, Any]) -> None:
    """Raise ConfigError unless families are known and bounds are positive and increasing."""
    known = get_args(BucketFamily)
    for family, bounds in buckets.items():
        if family not in known:
            _refuse(f"there is no family {family!r}; one of {', '.join(known)}")
        if not isinstance(bounds, list) or not bounds:
            _refuse(f"{family} must be a list of numbers, not {bounds!r}")
        for bound in bounds:
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                _refuse(f"{family}: {bound!r} is not a number")
            if not math.isfinite(bound) or bound <= 0:
                _refuse(f"{family}: {bound!r} is not positive and finite")
        if any(a >= b for a, b in pairwise(bounds)):
            _refuse(f"{family}: {bounds} do not increase")


def _refuse(sentence: str) -> None:
    raise ConfigError(f"--custom-histogram-buckets: {sentence}.", field="custom_histogram_buckets")
