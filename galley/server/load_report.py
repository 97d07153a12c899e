"""The load of the engines in an answer's header, for proxies that balance by it (ORCA)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from starlette.requests import Request

#: The header that asks: it names the format.
ASKED = "endpoint-load-metrics-format"
_TOLD = re.compile(
    rb"^vllm:(num_requests_waiting|kv_cache_usage_perc)(?:\{[^}\n]*\})? (\S+)$", re.MULTILINE
)


def load_report(raw: Request, metrics: Callable[[], tuple[bytes, str]]) -> dict[str, str] | None:
    """The header that tells the waiting requests and the fullest KV cache; None where it is not
    asked for, or in a format that there is not.

    Args:
        metrics: the text of /metrics, and its type.
    """
    form = raw.headers.get(ASKED, "").strip().upper()
    if form not in ("TEXT", "JSON"):
        return None
    waiting, usage = 0.0, 0.0
    for name, value in _TOLD.findall(metrics()[0]):
        if name == b"num_requests_waiting":
            waiting += float(value)
        else:
            usage = max(usage, float(value))
    named = {"num_requests_waiting": waiting, "kv_cache_usage_perc": usage}
    if form == "JSON":
        told = json.dumps({"named_metrics": named})
    else:
        told = ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())
    return {"endpoint-load-metrics": f"{form} {told}"}
