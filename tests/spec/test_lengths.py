"""How many drafts a step takes, by what steps cost and how drafts fare."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import GroupSpec, RequestTable, StepPlan
from galley.config.resolve import from_kwargs
from galley.errors import ConfigError
from galley.kernels._native import StepCosts
from galley.spec.lengths import AdaptiveLengths, FixedLengths
from galley.spec.proposer import Drafts

WIDTH = 8


class Never:
    """A proposer that is not asked."""

    width, is_free = WIDTH, True


class Simulation:
    """Decode steps of `rows` sequences. Drafts say that the token at position p is p. One is right
    with the probability `later` if the token before it is, else `chance` [rows]. A step takes
    `cost(tokens)` seconds.
    """

    def __init__(
        self, rows: int, cost, chance: float | tuple[float, ...], later: float | None = None
    ) -> None:
        self.rows, self.cost = rows, cost
        self.chance = np.broadcast_to(chance, rows)
        self.later = later
        self.rng = np.random.default_rng(0)
        self.table = RequestTable(rows, 40_000, [GroupSpec("full", 16, 64)])
        self.table.num_tokens[:] = 1
        self.lengths = AdaptiveLengths(Never(), rows)  # type: ignore[arg-type]
        self.counts = np.zeros(rows, np.int32)
        self.slots = np.arange(rows)

    def step(self) -> tuple[int, float]:
        """Tokens of a step, and its seconds."""
        table, new = self.table, (1 + self.counts).astype(np.int32)
        seconds = self.cost(int(new.sum()))
        plan = StepPlan(1, self.slots.astype(np.int32), new, new, new)
        plan.draft_ids = np.zeros(int(self.counts.sum()), np.int32)
        self.lengths.stepped(plan, seconds)
        before = table.num_tokens.copy()
        for slot, count in enumerate(new.tolist()):
            for _ in range(count):
                at = int(table.num_tokens[slot])
                goes_on = self.later is not None and table.token_ids[slot, at - 1] == at - 1
                chance = self.later if goes_on else self.chance[slot]
                right = self.rng.random() < chance
                table.token_ids[slot, at] = at if right else -1
                table.num_tokens[slot] += 1
                if not right:
                    break
        assert (self.lengths.most(table, self.slots, self.rows) == WIDTH).all()
        self.counts = self.choose(0.0)
        return int((table.num_tokens - before).sum()), seconds

    def choose(self, seconds: float):
        ids = (self.table.num_tokens[:, None] + np.arange(WIDTH)).astype(np.int32)
        drafts = Drafts(np.full(self.rows, WIDTH, np.int32), ids, np.full(self.rows, 4, np.int32))
        return self.lengths.choose(self.table, self.slots, drafts, self.rows, seconds)

    def run(self, steps: int) -> float:
        """Tokens per second."""
        tokens, seconds = zip(*(self.step() for _ in range(steps)), strict=True)
        return sum(tokens) / sum(seconds)


def flat(tokens: int) -> float:
    """A step bound by memory."""
    return 1.0 + 0.02 * tokens


def steep(tokens: int) -> float:
    """A step bound by arithmetic."""
    return float(tokens)


def test_drafts_that_are_right_are_taken_where_they_cost_little() -> None:
    simulation = Simulation(1, flat, 0.95)
    simulation.run(100)
    assert simulation.run(200) > 4 / flat(1)
    assert simulation.counts[0] >= 6


def test_none_are_taken_where_a_token_costs_as_much_as_a_step() -> None:
    simulation = Simulation(8, steep, 0.5)
    simulation.run(100)
    assert simulation.run(100) >= 0.97 * 8 / steep(8)
    assert not simulation.counts.any()


def test_wrong_drafts_are_not_computed_for_long() -> None:
    for rows in (1, 4, 32):
        simulation = Simulation(rows, flat, 0.02)
        simulation.run(60)
        assert simulation.run(300) >= 0.97 * rows / flat(rows)


def test_they_come_back_when_they_are_right_again() -> None:
    """Though none was computed meanwhile: proposals are compared with the tokens that came."""
    simulation = Simulation(1, flat, 0.0)
    simulation.run(100)
    assert not simulation.counts.any()
    simulation.chance = np.array([0.95])
    simulation.run(60)
    assert simulation.run(100) > 3 / flat(1)


def test_the_sequences_with_the_best_chances_get_the_drafts() -> None:
    simulation = Simulation(2, lambda tokens: 1.0 + 0.2 * tokens, (0.95, 0.02))
    simulation.run(60)
    computed = np.zeros(2)
    for _ in range(40):
        simulation.step()
        computed += simulation.counts
    assert computed[0] > 40
    assert computed[1] < 4, "but where one happened to be right"


def test_drafts_are_taken_where_the_last_ones_were_right() -> None:
    """Few are right behind a wrong one: those alone would not pay."""
    simulation = Simulation(1, lambda tokens: 1.0 + 0.3 * tokens, 0.1, later=0.95)
    simulation.run(200)
    assert simulation.run(400) > 1.3 / simulation.cost(1)


def test_a_sequence_that_long_had_no_drafts_is_asked_about_now_and_then() -> None:
    simulation = Simulation(2, flat, 0.0)
    simulation.run(100)
    lengths, slots = simulation.lengths, np.arange(2)
    assert sum(not lengths.rests() and lengths.asks(slots)[0] for _ in range(80)) == 10
    lengths.clear(np.array([1]))
    lengths.enter(1)
    assert all(not lengths.rests() and lengths.asks(slots)[1] for _ in range(80))


def test_what_it_takes_to_propose_counts() -> None:
    """Drafts that pay if they cost nothing, proposed in as long as a step."""
    simulation = Simulation(1, flat, 0.6)
    simulation.run(100)
    assert simulation.counts.any()
    for _ in range(40):
        counts = simulation.choose(9 * flat(1))
    assert not counts.any()


def test_a_proposer_that_costs_time_rests_while_its_drafts_do_not_pay() -> None:
    simulation = Simulation(1, flat, 0.6)
    lengths = simulation.lengths
    simulation.run(100)
    lengths._is_free, lengths._proposing = False, StepCosts(1)

    def is_asked(seconds: float, pays: bool) -> bool:
        asked = lengths.most(simulation.table, simulation.slots, 1).any()
        if asked:
            assert simulation.choose(seconds).any() == pays
        return bool(asked)

    # The first time it reads the prompt as well, which says nothing.
    for seconds, pays in ((9 * flat(1), True), (0.0, True), (9 * flat(1), False)):
        assert is_asked(seconds, pays)
    assert [is_asked(0.0, False) for _ in range(67)] == [False] * 64 + [True] * 2 + [False]


def test_costs_between_and_beyond_measurements() -> None:
    costs = StepCosts(16)
    costs.record(2, 1.0, False)
    costs.record(6, 1.4, True)
    curve = costs.curve(2, 8)
    assert curve[:5] == pytest.approx([1.0, 1.025, 1.1, 1.225, 1.4])
    assert curve[-1] == pytest.approx(1.8)
    costs.record(4, 2.0, True)
    costs.record(8, 1.8, True)
    curve = costs.curve(2, 6)
    assert curve == pytest.approx([1.0, 1.175, 1.7, 1.7, 1.7, 1.75, 1.8]), "a pause shows itself"
    assert [costs.age(tokens) for tokens in (8, 4, 2)] == [0, 1, 3]
    assert costs.age(3) > 1000
    costs.record(6, 50.0, True)
    assert costs.known(6) == pytest.approx(2.1), "a pause counts as twice the time at most"
    before = costs.curve(2, 6)
    for _ in range(40):
        costs.record(2, 0.6, False)
    assert costs.curve(2, 6) == pytest.approx([0.6 * seconds for seconds in before], rel=0.01)


def test_fixed_lengths_by_the_number_of_sequences() -> None:
    lengths = FixedLengths(WIDTH, ((1, 2, 8), (3, 10, 3)))
    assert [lengths.limit(n) for n in (1, 2, 3, 10, 11)] == [8, 8, 3, 3, 0]
    assert FixedLengths(5).limit(1000) == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "dflash", "model": "x"}, "'dflash' is not supported yet"),
        ({"method": "ernie_mtp"}, "not supported yet"),
        ({"method": "guess"}, "must be one of ngram, suffix"),
        ({"method": "draft_model"}, ".gguf file or hub name"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens must be in 1"),
        ({"method": "ngram", "num_speculative_tokens": 64}, "in 1 … 63"),
        ({"method": "ngram", "num_speculative_tokens": "a"}, "num_speculative_tokens: expected"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}, "above"),
        ({"method": "ngram", "prompt_lookup_min": 17}, "in 1 … 16"),
        ({"method": "ngram", "model": "x"}, "ngram has no weights"),
        ({"method": "ngram", "quantization": "awq"}, "quantization is not supported with ngram"),
        ({"method": "ngram", "parallel_drafting": True}, "is not supported with ngram"),
        ({"method": "ngram", "rejection_sample_method": "synthetic"}, "must be 'standard'"),
        ({"method": "suffix", "suffix_decoding_min_token_prob": 1.5}, "in 0 … 1"),
        ({"method": "custom_class"}, "module.Class"),
        ({"method": "ngram", "drafts": 3}, "drafts"),
        (
            {"method": "ngram", "num_speculative_tokens_per_batch_size": [[4, 2, 3]]},
            "entries",
        ),
    ],
)
def test_settings_that_do_not_exist_are_refused_by_name(given, says) -> None:
    with pytest.raises(ConfigError, match="--speculative-config") as caught:
        from_kwargs({"speculative_config": given}, "offline", {})
    assert says in str(caught.value)
    assert caught.value.field == "speculative_config"


def test_short_flags_are_keys() -> None:
    def settings(**flags):
        return from_kwargs(flags, "offline", {}).speculative.settings

    both = {"method": "suffix", "num_speculative_tokens": 4}
    assert settings(spec_method="suffix", spec_tokens=4) == settings(speculative_config=both)
    assert settings(spec_method="none") is None
    assert settings(spec_method="ngram_gpu").method == "ngram"
    with pytest.raises(ConfigError, match="exclude each other"):
        settings(spec_method="ngram", speculative_config={"method": "ngram"})
