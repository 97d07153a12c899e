"""The environment variables of vLLM 0.32 and Galley, so that a misspelt one is reported.

vLLM's names are in vllm_variables.txt. docs/compatibility/environment-variables.md lists what each
of them does here.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from galley.errors import ConfigError

log = logging.getLogger(__name__)

#: Galley's own, without the prefix.
_OWN = """
BATCH_INVARIANT CACHE_DIR CPU_ISA DEV_MODE FAULTS KV_CACHE_MEMORY_BYTES LOGGING_FORMAT NUM_THREADS
WEIGHT_CACHE_SIZE
"""


@cache
def vllm_variables() -> frozenset[str]:
    return frozenset(Path(__file__).with_name("vllm_variables.txt").read_text().split())


@cache
def galley_variables() -> frozenset[str]:
    """Every VLLM_ variable may be spelled GALLEY_ instead; some exist only as GALLEY_."""
    names = [name.removeprefix("VLLM_") for name in vllm_variables()]
    return frozenset(f"GALLEY_{name}" for name in [*names, *_OWN.split()])


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """A sentence for each VLLM_ and GALLEY_ variable that does not exist."""
    sentences = []
    for name in sorted(n for n in env if n.startswith(("VLLM_", "GALLEY_"))):
        known = vllm_variables() if name.startswith("VLLM_") else galley_variables()
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.85)
            hint = f" Did you mean {near[0]}?" if near else ""
            sentences.append(f"unknown environment variable {name}: it has no effect.{hint}")
    return sentences


def check_variables(env: Mapping[str, str], strict: bool) -> None:
    """Warn of unknown variables. Raises ConfigError instead where `strict`."""
    sentences = unknown_variables(env)
    if sentences and strict:
        raise ConfigError(
            " ".join([*sentences, "(--fail-on-environ-validation)"]),
            field="fail_on_environ_validation",
        )
    for sentence in sentences:
        log.warning("%s", sentence)
