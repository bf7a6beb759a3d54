"""The rules of promotion: gains over rows of few kinds, and each guard. test_promotion_trials.py simulates many."""

from dataclasses import replace

import numpy as np
import pytest

from measures.seed_effects import compute_seed_advantage
from models.errors import UserError
from stages.promote.past_champions import describe_model, read_reference
from stages.promote.promotion_rules import Decision, Evidence, GainRule, Guards, Reference, decide, judge_gain

GUARDS = Guards(forgetting=0.1, empty_rate=0.02, probes=0.1, latency=1.5, repetition=0.2, general=0.85, refusals=0.05)
RULE = GainRule("loss", margin=0.01, seed_spread=0.04)
BASE = Reference("base", loss=2.0, rouge=96.8, probes=0.2, latency=1.0)
CHAMPION = Reference("champion v2.0.0", loss=2.0, rouge=90.0, probes=0.8, latency=1.1)


def metrics(**change) -> dict:
    values = {"loss": 2.0, "rouge": 90.0, "general_rows": 30, "empty": 0.0, "refusals": 0.0, "repetition": 0.0}
    values |= {"probes": 0.8, "number_of_probes": 24} | change
    rate = {"rate": values["probes"], "low": 0.5, "high": 0.9, "of": values["number_of_probes"]}
    return {
        "general": {"loss": values["loss"], "rouge-l": values["rouge"], "rows": values["general_rows"]},
        "test": {
            "answered": 40,
            "empty_rate": values["empty"],
            "refusal_rate": values["refusals"],
            "repetition": values["repetition"],
        },
        "probes": {"rates": {"all": rate}},
    }


def with_losses(losses, figures: dict | None = None) -> Evidence:
    return Evidence("x", [{"loss": float(loss)} for loss in losses], figures or metrics())


def decide_by_loss(champion: Evidence, challenger: Evidence, latency: float = 1.0, references=()) -> Decision:
    return decide(champion, challenger, [BASE, CHAMPION, *references], latency, RULE, GUARDS)


def unmet_conditions(decision: Decision) -> list[str]:
    return [condition.condition for condition in decision.conditions if not condition.met]


@pytest.fixture
def champion() -> Evidence:
    return with_losses(1.0 + np.arange(20) / 10)


@pytest.fixture
def challenger() -> Evidence:
    """Less than half of the champion's losses."""
    return with_losses(0.2 + np.arange(20) / 20)


# Gain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "is_promoted"), [(1, False), (2, False), (5, False), (12, True)])
def test_few_rows_promote_nothing_whatever_the_gain(rows, is_promoted):
    """Every row has the same gain."""
    decision = decide_by_loss(with_losses([3.0] * rows), with_losses([0.5] * rows))
    assert decision.promote == is_promoted
    gain = decision.conditions[0]
    assert (gain.values["rows"], gain.values["min_rows"]) == (rows, 6)
    assert (gain.values["low"] is None) == (decision.low is None) == (not is_promoted)


def test_lower_losses_and_higher_scores_are_better():
    low = Evidence("low", [{"loss": 1.0 + i / 9, "rouge-l": 20.0 + i} for i in range(10)], metrics())
    high = Evidence("high", [{"loss": 3.0 + i / 9, "rouge-l": 60.0 + i} for i in range(10)], metrics())
    assert judge_gain(low, high, replace(RULE, metric="rouge-l")).met
    assert not decide_by_loss(low, high).promote
    assert decide_by_loss(with_losses([row["loss"] for row in high.rows]), low).promote


@pytest.mark.parametrize(("rouge", "unmet"), [(60.0, []), (58.0, []), (20.0, ["answers"])])
def test_lower_losses_do_not_make_up_for_answers_that_are_proven_worse(rouge, unmet):
    noise = (-4, 3, -1, 5, -3, 0, 2, -2, 4, -4)
    champion = Evidence("old", [{"loss": 3.0 + i / 9, "rouge-l": 60.0} for i in range(10)], metrics())
    challenger = Evidence(
        "new", [{"loss": 1.0 + i / 9, "rouge-l": rouge + change} for i, change in enumerate(noise)], metrics()
    )
    assert unmet_conditions(decide_by_loss(champion, challenger)) == unmet


def test_same_evidence_gives_the_same_decision(champion, challenger):
    assert decide_by_loss(champion, challenger) == decide_by_loss(champion, challenger)


def test_needed_gain_by_hand(champion, challenger):
    """Equal gains without an interval: E·s·m + (Q - E)·s·m, where Q of one candidate is √2 times that of a normal."""
    rows = 10_000  # so that the margin for unseen rows is small
    gain = judge_gain(with_losses([1.0] * rows), with_losses([0.5] * rows), RULE)
    assert gain.values["needed"] == pytest.approx(1.95996 * 2**0.5 * 0.04, rel=0.01)
    against_base = replace(RULE, is_opponent_trained=False)
    gain = judge_gain(with_losses([1.0] * rows), with_losses([0.5] * rows), against_base)
    assert gain.values["needed"] == pytest.approx(1.95996 * 0.04, rel=0.01)
    gain = judge_gain(with_losses([1.0] * rows), with_losses([0.5] * rows), replace(RULE, seed_spread=0, margin=0.2))
    assert gain.values["needed"] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("candidates", [1, 20, 100])
@pytest.mark.parametrize("is_opponent_trained", [True, False])
def test_advantage_of_the_best_of_equal_candidates_is_that_of_simulations(candidates, is_opponent_trained):
    rng = np.random.default_rng(1)
    best = rng.standard_normal((100_000, candidates)).max(axis=1)
    advantages = best - is_opponent_trained * rng.standard_normal(len(best))
    computed = compute_seed_advantage(candidates, 0.95, is_opponent_trained)
    assert computed.mean == pytest.approx(advantages.mean(), abs=0.02)
    assert computed.quantile == pytest.approx(np.quantile(advantages, 0.975), abs=0.04)


def test_several_challengers_need_more(champion, challenger):
    needed = [
        judge_gain(champion, challenger, replace(RULE, candidates=count, challengers=count)).values
        for count in (1, 2, 10)
    ]
    assert needed[0]["needed"] < needed[1]["needed"] < needed[2]["needed"]
    assert [values["min_rows"] for values in needed] == [6, 7, 9]


@pytest.mark.parametrize("value", [0.0, 1.0, 50.0])
def test_equal_rows_are_no_gain(value):
    assert not judge_gain(with_losses([value] * 100), with_losses([value] * 100), RULE).met


def test_one_row_of_many_that_differs_is_no_gain():
    """As for a score that is mostly 0 or 100."""
    old, new = ([{"rouge-l": 0.0}] * 99 + [{"rouge-l": score}] for score in (0.0, 100.0))
    rule = GainRule("rouge-l", margin=0.0, seed_spread=0.0)
    assert not judge_gain(Evidence("", old, {}), Evidence("", new, {}), rule).met


def turns_of(dialogue: int, losses) -> list[dict]:
    """Return rows of one dialogue in a file with one row per turn."""
    messages, rows = [], []
    for turn, loss in enumerate(losses):
        messages = [*messages, {"role": "user", "content": f"问 {dialogue} {turn}"}]
        rows.append({"messages": messages, "reference": f"答 {dialogue} {turn}", "loss": float(loss)})
        messages = [*messages, {"role": "assistant", "content": f"答 {dialogue} {turn}"}]
    return rows


def test_rows_of_one_dialogue_are_one_observation():
    """Five dialogues of 20 turns, with equal gains within each, prove no more than five rows."""
    old = [row for dialogue in range(5) for row in turns_of(dialogue, [2.0] * 20)]
    new = [row for dialogue in range(5) for row in turns_of(dialogue, [1.0 + dialogue / 9] * 20)]
    gain = judge_gain(Evidence("", old, {}), Evidence("", new, {}), RULE)
    assert (gain.met, gain.values["rows"]) == (False, 5)


# Guards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "violated"),
    [
        ({"loss": 2.2}, "forgetting"),
        ({"rouge": 31.7}, "general"),
        ({"rouge": 0.84 * 96.8}, "general"),
        ({"empty": 0.05}, "empty_rate"),
        ({"refusals": 0.06}, "refusals"),
        ({"probes": 0.6}, "probes"),
        ({"repetition": 0.68}, "repetition"),
        ({"repetition": 0.21}, "repetition"),
        ({"repetition": float("nan")}, "repetition"),
    ],
)
def test_violated_guard_prevents_promotion(champion, challenger, change, violated):
    assert decide_by_loss(champion, challenger).promote
    decision = decide_by_loss(champion, replace(challenger, figures=metrics(**change)))
    assert not decision.promote
    assert unmet_conditions(decision) == [violated]


def test_high_latency_prevents_promotion(champion, challenger):
    """1.5 times the base's, although the champion is slower."""
    assert decide_by_loss(champion, challenger, 1.5).promote
    assert unmet_conditions(decide_by_loss(champion, challenger, 1.52)) == ["latency"]


@pytest.mark.parametrize(
    ("past", "violated"),
    [
        ({"loss": 1.8}, "forgetting"),
        ({"rouge": 107.0}, "general"),
        ({"probes": 0.95}, "probes"),
        ({"latency": 0.6}, "latency"),
    ],
)
def test_guards_compare_with_the_best_champion_so_far(champion, challenger, past, violated):
    """Each promotion may allow a little; the sum of many is not allowed."""
    decision = decide_by_loss(champion, challenger, references=[Reference("champion v1.0.0", **past)])
    assert unmet_conditions(decision) == [violated]
    values = next(condition.values for condition in decision.conditions if condition.condition == violated)
    assert values["reference"] == "champion v1.0.0"
    assert decide_by_loss(champion, challenger, references=[Reference("champion v1.0.0")]).promote


def test_few_general_rows_are_no_proof(champion, challenger):
    decision = decide_by_loss(champion, replace(challenger, figures=metrics(general_rows=5)))
    assert unmet_conditions(decision) == ["forgetting", "general"]


def test_two_probes_judge_nothing_and_none_are_no_condition(champion, challenger):
    decision = decide_by_loss(champion, replace(challenger, figures=metrics(probes=0.0, number_of_probes=2)))
    assert decision.promote
    without = metrics() | {"probes": None}
    decision = decide_by_loss(champion, replace(challenger, figures=without))
    assert decision.promote
    assert "probes" not in [condition.condition for condition in decision.conditions]


def test_probe_guard_counts_unseen_wordings(champion, challenger):
    def with_rates(seen: float, unseen: float) -> dict:
        bounds = {"low": 0.0, "high": 1.0, "of": 12}
        rates = {"seen": {"rate": seen} | bounds, "unseen": {"rate": unseen} | bounds}
        return metrics() | {"probes": {"rates": rates | {"all": rates["seen"]}}}

    assert unmet_conditions(decide_by_loss(champion, replace(challenger, figures=with_rates(1.0, 0.7)))) == ["probes"]
    assert decide_by_loss(champion, replace(challenger, figures=with_rates(0.0, 0.8))).promote


def test_plain_texts_are_judged_by_their_loss_alone(champion, challenger):
    figures = metrics() | {"test": {"answered": 0, "empty_rate": None, "refusal_rate": None, "repetition": None}}
    decision = decide_by_loss(champion, replace(challenger, figures=figures))
    assert decision.promote
    assert not {"empty_rate", "refusals", "repetition"} & {condition.condition for condition in decision.conditions}


def test_a_score_counts_the_answered_rows():
    texts = [{"loss": 1.0}] * 5
    models = [Evidence("x", [*({"rouge-l": rouge} for _ in range(20)), *texts], metrics()) for rouge in (50.0, 80.0)]
    condition = judge_gain(*models, replace(RULE, metric="rouge-l"))
    assert condition.met
    assert condition.values["rows"] == 20


def test_records_of_champions_are_compared_on_the_same_rows_only():
    def record(question: str, base: str = "a") -> dict:
        rows = [{"id": "1", "messages": [{"role": "user", "content": question}], "reference": "答"}]
        return describe_model(metrics() | {"of": {"base_identity": base}}, rows, rows, 1.2)

    current = record("问")
    assert read_reference("v1.0.0", record("问"), current) == Reference("champion v1.0.0", 2.0, 90.0, 0.8, 1.2)
    assert read_reference("v1.0.0", record("别的"), current) == Reference("champion v1.0.0", latency=1.2)
    assert read_reference("v1.0.0", record("问", "b"), current) == Reference("champion v1.0.0")
    assert read_reference("v1.0.0", {}, current) == Reference("champion v1.0.0")
    with pytest.raises(UserError, match="has loss 'x', which is not a number"):
        read_reference("v1.0.0", current | {"loss": "x"}, current)
