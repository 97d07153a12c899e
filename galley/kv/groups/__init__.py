"""KV groups: layers whose blocks are allocated together, with one policy a kind.

A kind is one file here and one line in `GROUPS`. Pool, manager and scheduler know no kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from galley.batch import GroupSpec
from galley.errors import ConfigError
from galley.kv.groups.full import FullPolicy
from galley.kv.groups.policy import GroupPolicy, Lookup
from galley.kv.groups.state import StatePolicy
from galley.kv.groups.window import WindowPolicy

__all__ = ["GROUPS", "GroupPolicy", "Lookup", "make_policies"]

#: Kind of a `GroupSpec` -> its policy.
GROUPS: dict[str, type[GroupPolicy]] = {
    "full": FullPolicy,
    "window": WindowPolicy,
    "state": StatePolicy,
}


def make_policies(specs: Sequence[GroupSpec], max_chunk: int) -> list[GroupPolicy]:
    """The policies of some groups.

    Args:
        max_chunk: most tokens that one sequence computes in a step.

    Raises:
        ConfigError: a group's kind has no policy.
    """
    for spec in specs:
        if spec.kind not in GROUPS:
            raise ConfigError(f"KV groups of kind {spec.kind!r} are not supported.")
    return [GROUPS[spec.kind](spec, max_chunk) for spec in specs]
