"""Acceptance of drafts during a run: vLLM's result fields and the lines of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drafted:
    """A server's counts of drafts: of sequences and steps, tokens, accepted tokens, and those by
    place."""

    drafts: float
    draft_tokens: float
    accepted: float
    accepted_by_place: list[float]


def acceptance(before: Drafted | None, after: Drafted | None) -> dict[str, Any]:
    """Fields of a result; empty where nothing was drafted in between."""
    if before is None or after is None or after.draft_tokens <= before.draft_tokens:
        return {}
    drafts, tokens = after.drafts - before.drafts, after.draft_tokens - before.draft_tokens
    accepted = after.accepted - before.accepted
    by_place = zip(after.accepted_by_place, before.accepted_by_place, strict=True)
    return {
        "spec_decode_acceptance_rate": 100 * accepted / tokens,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(tokens),
        "spec_decode_accepted_tokens": int(accepted),
        "spec_decode_per_position_acceptance_rates": [(a - b) / drafts for a, b in by_place],
    }


def lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of a report; none without drafts."""
    if "spec_decode_acceptance_rate" not in result:
        return []
    rates = result["spec_decode_per_position_acceptance_rates"]
    return [
        ("Acceptance rate (%):", f"{result['spec_decode_acceptance_rate']:.2f}"),
        ("Tokens per draft and step:", f"{result['spec_decode_acceptance_length']:.2f}"),
        ("Drafts:", str(result["spec_decode_num_drafts"])),
        ("Draft tokens:", str(result["spec_decode_draft_tokens"])),
        ("Accepted tokens:", str(result["spec_decode_accepted_tokens"])),
        *(
            (f"Acceptance at position {place} (%):", f"{100 * rate:.2f}")
            for place, rate in enumerate(rates)
            if rate
        ),
    ]
