"""Rotary position embedding: inverse frequencies per scaling, and the table of rotations.

    angle of position p, pair i = p * inverse_frequencies[i]

A scaling is a frozen struct with `inverse_frequencies`; a new one is one class. All arithmetic
is float32, as in training. A table is fixed: the rotation of a position never depends on the length
of the sequence.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.errors import ModelError

F32 = NDArray[np.float32]
#: A million positions of 128 values.
MAX_TABLE_BYTES = 1 << 29
#: Rows of a table that are computed together, so that temporaries stay small.
_ROWS_AT_ONCE = 65_536


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every rotary embedding besides its frequencies.

    Attributes:
        interleaved: pairs are adjacent elements (as in GPT-J); otherwise i and i + dim / 2 (NeoX).
        growth: (beta, n) multiplies the amplitude of position p by 1 + beta * log(1 + p // n): of
            queries, whose scores then keep their spread over long sequences.
        growth_offset: added to p in that.
    """

    interleaved: bool = False
    growth: tuple[float, int] | None = None
    growth_offset: int = 0


class Rotary(_Options, frozen=True):
    """Plain rotary embedding: frequencies theta ** (-2 i / dim).

    Attributes:
        dim: elements of a head that are rotated.
        theta: base of the frequencies.
    """

    dim: int
    theta: float

    def for_length(self, positions: int) -> Rotary:
        """The embedding of sequences of up to so many tokens; most do not depend on it."""
        return self

    def inverse_frequencies(self) -> F32:
        """[dim / 2] radians per position."""
        return inverse_frequencies(self.dim, self.theta)

    def amplitude(self) -> float:
        """Factor of cos and sin."""
        return 1.0


def inverse_frequencies(dim: int, theta: float) -> F32:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies: F32 = np.power(np.float32(theta), -exponent).astype(np.float32)
    return frequencies


class NoRotation(Rotary, frozen=True):
    """Angles of zero: only `growth` acts."""

    def inverse_frequencies(self) -> F32:
        return np.zeros(self.dim // 2, np.float32)


class InverseRotary(Rotary, frozen=True):
    """Rotates by the negative angles."""

    def inverse_frequencies(self) -> F32:
        return -super().inverse_frequencies()


class LinearRotary(Rotary, frozen=True):
    """Positions divided by `factor`."""

    factor: float

    def inverse_frequencies(self) -> F32:
        return super().inverse_frequencies() / np.float32(self.factor)


class FrequencyFactors(Rotary, frozen=True):
    """Each frequency divided by its own factor (GGUF's rope_freqs)."""

    factors: tuple[float, ...]

    def inverse_frequencies(self) -> F32:
        factors: F32 = np.asarray(self.factors, np.float32)
        return super().inverse_frequencies() / factors


class ProportionalRotary(Rotary, frozen=True):
    """The first `rotated` elements of each half have the frequencies of the whole, divided by
    `factor`; the others stay as they are."""

    rotated: int
    factor: float = 1.0

    def inverse_frequencies(self) -> F32:
        frequencies = super().inverse_frequencies() / np.float32(self.factor)
        frequencies[self.rotated :] = 0
        return frequencies


class LongRotary(Rotary, frozen=True):
    """Each frequency divided by its own factor: `short` ones where no sequence may be longer than
    `original_max_position`, otherwise `long` ones.

    The original recipe looks at the current length, which would change the rotation of keys that
    are in the cache already. Like vLLM, this takes the longest length for all.

    Attributes:
        attention_factor: amplitude.
        long_attention_factor: that with long factors; None = the same.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int
    attention_factor: float
    long_attention_factor: float | None = None

    def for_length(self, positions: int) -> Rotary:
        if positions <= self.original_max_position:
            return self
        amplitude = self.long_attention_factor or self.attention_factor
        return replace(self, short=self.long, attention_factor=amplitude)

    def inverse_frequencies(self) -> F32:
        factors: F32 = np.asarray(self.short, np.float32)
        return super().inverse_frequencies() / factors

    def amplitude(self) -> float:
        return self.attention_factor


class DynamicNTK(Rotary, frozen=True):
    """A larger base, fixed for the longest sequence, factor * max_position.

    The original recipe takes the base from the current length, which would change the rotation of
    keys that are in the cache already. Like vLLM, this takes the longest length for all.
    """

    factor: float
    max_position: int

    def inverse_frequencies(self) -> F32:
        stretch = self.factor * self.factor - (self.factor - 1)
        theta: float = self.theta * stretch ** (self.dim / (self.dim - 2))
        return inverse_frequencies(self.dim, theta)


class Llama3Rotary(Rotary, frozen=True):
    """Long wavelengths divided by `factor`, short ones kept, a ramp between.

    wavelength:   short ── original / high ── ramp ── original / low ── long
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def inverse_frequencies(self) -> F32:
        plain = super().inverse_frequencies()
        rotations = self.original_max_position * plain / np.float32(2 * math.pi)
        ramp = (rotations - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = np.clip(ramp, 0, 1).astype(np.float32)
        return (1 - keep) * plain / np.float32(self.factor) + keep * plain


class YarnRotary(Rotary, frozen=True):
    """NTK by parts: fast pairs are kept, slow ones divided by `factor`, with a ramp between.

    Attributes:
        beta_fast, beta_slow: rotations within the original length where the ramp begins and ends.
        attention_factor: amplitude; None = from `mscale` and `mscale_all_dim`, or `factor` alone.
        truncate: round the ramp's borders to whole pairs.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def inverse_frequencies(self) -> F32:
        plain = super().inverse_frequencies()
        low, high = self._pair(self.beta_fast), self._pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        width = high - low if high != low else 0.001  # a step, not a division by zero
        ramp = (np.arange(self.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width)
        divide = np.clip(ramp, 0, 1)
        return plain / np.float32(self.factor) * divide + plain * (1 - divide)

    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    def _pair(self, rotations: float) -> float:
        """The pair (not rounded) that makes so many rotations within the original length."""
        wavelength = self.original_max_position / rotations
        return self.dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(self.theta))

    def magnitude(self, mscale: float) -> float:
        """Factor that makes up for the longer sequences."""
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


def rotary_table(rotary: Rotary, positions: int) -> F32:
    """[positions, dim]: row p is cos of the dim / 2 angles of position p, then sin.

    Raises ModelError for settings without a finite result, and for a table that is too large.
    """
    size = 4 * positions * rotary.dim
    if size > MAX_TABLE_BYTES:
        raise ModelError(
            f"{positions} positions of {rotary.dim} values need a rotary table of "
            f"{size / 2**30:.1f} GiB; give a --max-model-len"
        )
    try:
        frequencies = rotary.inverse_frequencies().astype(np.float32)
        amplitude = np.float32(rotary.amplitude())
    except (ArithmeticError, ValueError) as error:
        raise ModelError(
            f"the rotary embedding cannot be computed from its settings: {error}"
        ) from None
    if not np.isfinite(frequencies).all() or not np.isfinite(amplitude):
        raise ModelError("the rotary embedding is not finite with its settings")
    table = np.empty((positions, 2 * len(frequencies)), np.float32)
    for start in range(0, positions, _ROWS_AT_ONCE):
        p = np.arange(start, min(start + _ROWS_AT_ONCE, positions), dtype=np.float32)
        angles = np.outer(p, frequencies)
        rows = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        table[start : start + len(p)] = rows * amplitude
        if rotary.growth is not None:
            beta, n = rotary.growth
            table[start : start + len(p)] *= (
                1 + np.float32(beta) * np.log1p((p + rotary.growth_offset) // n)[:, None]
            )
    return table
