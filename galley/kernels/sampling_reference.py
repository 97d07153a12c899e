"""The sampler's definition, one row at a time, in plain numpy.

The native op `sample` computes, in vLLM's order:

    logits ── logprobs (raw) ──▶ logprob, rank, top tokens
       └─ mask ─ bias ─ penalties ─ temperature ─ min_p ─ top_k ─ top_p ─ sample ──▶ token

A token is a function of (row, parameters, history, seed, absolute position): the inverse of the
cumulative distribution in the vocabulary's order, at a uniform number from a counter-based
generator. Knows nothing of slots, steps or batches.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
_WORD = 0xFFFFFFFF


class SampleParams(msgspec.Struct, frozen=True):
    """Sampling parameters; the defaults do nothing (temperature 0 is greedy)."""

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    seed: int = 0


class RowLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of one row: of its token (rank 1 = the most likely), and the k most likely ones."""

    logprob: float
    rank: int
    top_ids: I32
    top_logprobs: F32


def sample_row(
    logits: F32,
    params: SampleParams,
    history: I32,
    num_prompt: int,
    mask: NDArray[np.uint64] | None = None,
    bias: tuple[I32, F32] | None = None,
) -> int:
    """The token that follows `history`, or -1 where none can be sampled.

    Args:
        logits: [V], those of the last token of `history`.
        history: all known tokens; the first `num_prompt` are the prompt. The sampled token's
            position is len(history).
        mask: bit i of word w allows token 64 w + i; None allows all.
        bias: token ids and the values added to their logits.
    """
    if np.isnan(logits).any():
        return -1
    x = adjusted(logits, params, history, num_prompt, mask, bias)
    best = int(np.argmax(x))
    if np.isnan(x).any() or not np.isfinite(x[best]):
        return -1
    if params.temperature == 0:
        return best
    weights = filtered_weights(x, params)
    running = np.cumsum(weights)
    target = uniform(params.seed, len(history)) * running[-1]
    token = int(np.searchsorted(running, target, side="right"))
    return min(token, int(np.flatnonzero(weights)[-1]))


def adjusted(
    logits: F32,
    params: SampleParams,
    history: I32,
    num_prompt: int,
    mask: NDArray[np.uint64] | None = None,
    bias: tuple[I32, F32] | None = None,
) -> F32:
    """The row with mask, bias and penalties, [V] float32."""
    x = logits.astype(np.float32)
    size = len(x)
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]
        x[allowed == 0] = -np.inf
    if bias is not None:
        np.add.at(x, bias[0], bias[1])
    if params.repetition == 1 and params.frequency == 0 and params.presence == 0:
        return x
    known = history[(history >= 0) & (history < size)]
    output = history[num_prompt:]
    output = output[(output >= 0) & (output < size)]
    counts = np.bincount(output, minlength=size).astype(np.float32)
    seen = np.unique(known)
    repetition = np.float32(params.repetition)
    x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    x -= np.float32(params.frequency) * counts
    x -= np.float32(params.presence) * (counts > 0)
    return x


def filtered_weights(x: F32, params: SampleParams) -> NDArray[np.float64]:
    """exp((x - max) / temperature) of the tokens that min_p, top_k and top_p keep, else 0, [V].

    top_k keeps all that equal the k-th. top_p keeps, in descending order (of equal tokens the
    lowest id first), each token before which less than top_p of the mass has been kept.
    """
    weights = weights_of(x, params)
    return np.where(keep_mask(x, weights, params), weights, 0)


def weights_of(x: F32, params: SampleParams) -> NDArray[np.float64]:
    """exp((x - max) / temperature), [V]."""
    wide = x.astype(np.float64)
    return np.exp((wide - np.max(wide)) / np.float32(params.temperature))


def keep_mask(x: F32, weights: NDArray[np.float64], params: SampleParams) -> NDArray[np.bool_]:
    """Tokens that min_p, top_k and top_p keep, [V] bool; `weights` are `weights_of(x)`."""
    keep = (x > -np.inf) & (weights >= np.float32(params.min_p))
    if 0 < params.top_k < len(x):
        left = np.where(keep, x, -np.inf)
        keep &= left >= np.sort(left)[-params.top_k]
    if params.top_p < 1:
        order = np.lexsort((np.arange(len(x)), -x))
        left = np.where(keep, weights, 0)[order]
        before = np.cumsum(left) - left
        dropped = order[before >= np.float32(params.top_p) * left.sum()]
        keep[dropped[dropped != order[0]]] = False
    return keep


def logprobs_row(logits: F32, token: int, k: int) -> RowLogprobs:
    """Log-softmax of the raw row at `token` and at its k most likely tokens (lowest id first)."""
    wide = logits.astype(np.float64)
    wide = wide - np.max(wide)
    logprobs = (wide - np.log(np.exp(wide).sum())).astype(np.float32)
    top = np.lexsort((np.arange(len(logits)), -logits))[:k].astype(np.int32)
    rank = 1 + int((logits > logits[token]).sum())
    return RowLogprobs(float(logprobs[token]), rank, top, logprobs[top])


def uniform(seed: int, position: int) -> float:
    """In [0, 1), 53 bits: Philox4x32-10 of key `seed` and counter `position`."""
    c0, c1, c2, c3 = position & _WORD, position >> 32, 0, 0
    k0, k1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _WORD, (a >> 32) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return ((c0 << 32 | c1) >> 11) * 2.0**-53
