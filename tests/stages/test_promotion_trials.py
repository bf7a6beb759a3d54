"""Simulated promotions: equally good candidates are refused, truly better ones are promoted.

A candidate's loss of a row is the difficulty of the row, times a factor of the candidate's seed and one of the row. The
winner is chosen on evaluation rows and decided on by test rows, as in a sweep.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from stages.promote import promotion_rules
from stages.promote.promotion_rules import Evidence, GainRule, judge_gain

RULE = GainRule("loss", margin=0.01, seed_spread=0.04)  # the defaults of params.yaml
TRIALS = 1000


@dataclass(frozen=True)
class World:
    """Where candidates come from.

    Attributes:
        rows: test rows; as many evaluation rows.
        seed_spread: true standard deviation between seeds, as a share of the mean.
        row_noise: standard deviation of the logarithm of a row's factor; one of ten rows has three times that.
        effect: true change of the candidates' loss, as a share.
    """

    rows: int
    seed_spread: float = 0.04
    row_noise: float = 0.25
    effect: float = 0.0

    def draw_losses(self, rng, seeds: np.ndarray, effect: float = 0.0) -> np.ndarray:
        """Return the losses of models with these seed effects on fresh rows, float of shape (models, rows)."""
        difficulty = rng.lognormal(-1, 0.8, self.rows)
        noise = rng.normal(0, self.row_noise, (len(seeds), self.rows))
        noise[rng.random(noise.shape) < 0.1] *= 3
        return (1 + effect + seeds)[:, None] * difficulty * np.exp(noise)

    def draw_trial(self, rng, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the test losses of a champion and of the candidate with the lowest evaluation loss."""
        champion, *seeds = rng.normal(0, self.seed_spread, 1 + candidates)
        winner = self.draw_losses(rng, np.array(seeds), self.effect).mean(axis=1).argmin()
        noise_free = np.array([champion, self.effect + seeds[winner]])
        return tuple(self.draw_losses(rng, noise_free))


def is_promoted(champion: np.ndarray, challenger: np.ndarray, rule: GainRule) -> bool:
    """Return the decision of the rule on the gain. The interval is computed only where it matters.

    It reaches further than 1.5 standard errors, of which a 95 % interval has about 2.
    """
    gains = champion - challenger
    half_width = 1.5 * gains.std(ddof=1) / np.sqrt(len(gains))
    if gains.mean() <= promotion_rules._needed_gain(half_width, max(champion.mean(), challenger.mean()), rule):
        return False
    evidence = [Evidence("", [{"loss": float(loss)} for loss in losses], {}) for losses in (champion, challenger)]
    return judge_gain(*evidence, rule).met


def count_promotions(world: World, candidates: int, rule: GainRule, trials: int = TRIALS, seed: int = 0) -> int:
    rng = np.random.default_rng([seed, world.rows, candidates])
    return sum(is_promoted(*world.draw_trial(rng, candidates), rule) for _ in range(trials))


@pytest.mark.parametrize("rows", [30, 100, 400])
@pytest.mark.parametrize("candidates", [1, 20, 100])
@pytest.mark.parametrize("seed_spread", [0.0, 0.04])
def test_equally_good_candidates_are_refused_in_95_of_100_trials(rows, candidates, seed_spread):
    rule = replace(RULE, candidates=candidates)
    assert count_promotions(World(rows, seed_spread), candidates, rule) <= 0.05 * TRIALS


def test_a_choice_that_is_not_recorded_would_be_promoted_too_often():
    """The number of candidates matters: without it, the rule is that of one candidate."""
    world = World(200, row_noise=0.05)
    assert count_promotions(world, 100, RULE, 50) > 0.2 * 50
    assert count_promotions(world, 100, replace(RULE, candidates=100), 50) <= 0.05 * 50


@pytest.mark.parametrize("candidates", [1, 20, 100])
def test_a_loss_that_is_30_percent_lower_is_promoted_in_80_of_100_trials(candidates):
    rule = replace(RULE, candidates=candidates)
    assert count_promotions(World(100, effect=-0.3), candidates, rule, 25) >= 20


def test_seeds_without_a_spread_need_no_more_than_the_interval():
    """With as little noise as that, a gain of 5 % is certain if seeds do not differ, and chance if they do."""
    world = World(100, 0.0, 0.02, effect=-0.05)
    assert count_promotions(world, 1, replace(RULE, seed_spread=0.0), 20) == 20
    assert count_promotions(world, 1, RULE, 20) == 0
