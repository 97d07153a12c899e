"""Arrival times of requests: steady, random, bursty or ramping rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from galley.errors import ConfigError


@dataclass(frozen=True)
class Arrivals:
    """An arrival process.

    Gaps are sampled from a gamma distribution of shape `burstiness`: 1 is a Poisson process, less
    is burstier, more is steadier. Times are scaled so that the last request arrives exactly when
    the rate implies: runs differ in pattern but not in length.
    """

    rate: float = math.inf
    """Requests per second; inf sends all at once."""
    burstiness: float = 1.0
    ramp: Literal["linear", "exponential"] | None = None
    ramp_start: float = 0.0
    ramp_end: float = 0.0
    """Requests per second at the first and at the last request of a ramp."""

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(
                f"--request-rate must be positive, got {self.rate}.", field="request_rate"
            )
        if not self.burstiness > 0:
            raise ConfigError(
                f"--burstiness must be positive, got {self.burstiness}.", field="burstiness"
            )
        if self.ramp is None:
            return
        if self.rate != math.inf:
            raise ConfigError(
                "--ramp-up-strategy sets the rate itself: leave out --request-rate.",
                field="ramp_up_strategy",
            )
        if not 0 <= self.ramp_start < self.ramp_end:
            raise ConfigError(
                "--ramp-up-start-rps must be below --ramp-up-end-rps and not negative.",
                field="ramp_up_start_rps",
            )
        if self.ramp == "exponential" and self.ramp_start == 0:
            raise ConfigError(
                "an exponential ramp cannot start at 0 requests per second.",
                field="ramp_up_start_rps",
            )

    def rates(self, count: int) -> np.ndarray:
        """Requests per second around each of `count` requests, float64 [count]."""
        if self.ramp is None:
            return np.full(count, self.rate)
        share = (np.arange(count) + 1) / count
        if self.ramp == "linear":
            return self.ramp_start + (self.ramp_end - self.ramp_start) * share
        return self.ramp_start * (self.ramp_end / self.ramp_start) ** share

    def times(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Seconds after the start at which each request is sent, ascending float64 [count]."""
        rates = self.rates(count)
        if math.isinf(rates[0]):
            return np.zeros(count)
        gaps = rng.gamma(self.burstiness, 1 / self.burstiness, count) / rates
        times = np.cumsum(gaps)
        return times * (np.sum(1 / rates) / times[-1])
