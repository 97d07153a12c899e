"""Arrival processes: rate, shape, and invalid settings."""

import math

import numpy as np
import pytest

from galley.cli.bench.arrivals import Arrivals
from galley.errors import ConfigError


def times(count=4000, seed=1, **flags):
    return Arrivals(**flags).times(count, np.random.default_rng(seed))


def variation(values):
    """Coefficient of variation: deviation over mean."""
    return float(np.std(values) / np.mean(values))


def test_an_infinite_rate_sends_all_at_once():
    assert (times(10) == 0).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_last_arrival_matches_the_rate(burstiness):
    assert times(rate=50.0, burstiness=burstiness)[-1] == pytest.approx(4000 / 50)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness):
    gaps = np.diff(times(rate=50.0, burstiness=burstiness))
    assert variation(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)


def test_poisson_gaps_are_exponential():
    gaps = np.diff(times(rate=10.0))
    assert np.mean(gaps > 0.1) == pytest.approx(math.exp(-1), abs=0.03)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05


def test_linear_ramp_increases_the_rate():
    sent = times(4000, ramp="linear", ramp_start=1.0, ramp_end=41.0)
    rates = np.histogram(sent, bins=4)[0]
    assert (np.diff(rates) > 0).all()
    expected = Arrivals(ramp="linear", ramp_start=1.0, ramp_end=41.0).rates(40)
    assert expected[[0, 19, 39]].tolist() == [2.0, 21.0, 41.0]


def test_exponential_ramp_grows_by_a_constant_factor():
    rates = Arrivals(ramp="exponential", ramp_start=1.0, ramp_end=16.0).rates(4)
    assert rates.tolist() == pytest.approx([2, 4, 8, 16])


def test_the_same_seed_gives_the_same_times():
    assert (times(rate=3.0) == times(rate=3.0)).all()
    assert (times(rate=3.0) != times(rate=3.0, seed=2)).any()


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"rate": 0.0}, "request_rate"),
        ({"burstiness": -1.0}, "burstiness"),
        ({"rate": 1.0, "ramp": "linear", "ramp_end": 2.0}, "ramp_up_strategy"),
        ({"ramp": "linear", "ramp_start": 3.0, "ramp_end": 2.0}, "ramp_up_start_rps"),
        ({"ramp": "exponential", "ramp_end": 2.0}, "ramp_up_start_rps"),
    ],
)
def test_invalid_rates_are_refused(flags, field):
    with pytest.raises(ConfigError) as refused:
        Arrivals(**flags)
    assert refused.value.field == field
