"""n-gram: what followed the last tokens where they last occurred in the sequence itself.

The longest match counts, of prompt_lookup_min to prompt_lookup_max tokens, and of equally long ones
the latest. Good for answers that copy from their prompt.
"""

from __future__ import annotations

from galley.config.speculative import SpeculativeSettings
from galley.kernels import _native
from galley.spec.lookup import Lookup
from galley.spec.proposer import Target

#: Occurrences that are compared.
_CANDIDATES = 32


def ngram(settings: SpeculativeSettings, num_slots: int) -> Lookup:
    """The proposer for a table of so many slots."""
    low, high = settings.lookup_range
    index = _native.DraftIndex(num_slots, low, high, _CANDIDATES)
    return Lookup(num_slots, settings.most_drafts, index)


def make(settings: SpeculativeSettings, target: Target) -> Lookup:
    return ngram(settings, target.num_slots)
