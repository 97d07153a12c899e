"""Short prompts that overtake a long one, in engines with a target for the time of a step.

While the first prompt in order needs more than a step has for it, it gets at least half of the
tokens for prompts; the other half goes first to prompts that are short beside it, shortest first.
"""

from __future__ import annotations

from itertools import islice

from galley.kv import Hit, KVCacheManager
from galley.scheduler.queue import WaitingQueue
from galley.scheduler.sequence import Sequence

#: A prompt is short beside one that needs so many times its tokens, so that equal prompts go in
#: order.
FACTOR = 2
#: Waiting sequences that may overtake: so many of the first.
SCANNED = 16


#: A slot, and the tokens that it needs.
Prompt = tuple[int, int]


def split_short(prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Those that are short beside the first, shortest first, and the others in their order."""
    most = prompts[0][1] // FACTOR
    short = sorted((p for p in prompts if p[1] <= most), key=lambda prompt: prompt[1])
    return short, [p for p in prompts if p[1] > most]


def waiting_short(
    queue: WaitingQueue, first: Sequence, need: int, kv: KVCacheManager, by_priority: bool
) -> list[Sequence]:
    """The waiting sequences that are short beside a running prompt, shortest first.

    Args:
        need: tokens that `first` still needs.
        by_priority: none overtakes a more important one.
    """
    short = [
        seq
        for seq in islice(queue, SCANNED)
        if len(seq.token_ids) * FACTOR <= need
        and not seq.in_one_piece
        and not (by_priority and seq.request.priority > first.request.priority)
        and kv.can_admit(Hit(), len(seq.token_ids))
    ]
    return sorted(short, key=lambda seq: len(seq.token_ids))
