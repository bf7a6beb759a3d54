import pytest

from measures.metrics import drift, headlines, of_lengths, of_probes, of_samples, rate, refuse_other_versions, variety
from models.errors import UserError


def test_losses_weigh_tokens_and_scores_rows():
    scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4", "chrf"), 50.0)
    rest = {"exact": False, "empty": False, "repetition": 0.0, "length_ratio": 1.0}
    rows = [
        scores | rest | {"loss": 1.0, "answer_tokens": 1, "divergence": 0.5},
        scores | rest | {"loss": 3.0, "answer_tokens": 3, "divergence": 0.1, "exact": True, "rouge-l": 100.0},
    ]
    figures = of_samples(rows)
    assert (figures["loss"], figures["divergence"], figures["rouge-l"], figures["exact_match"]) == (2.5, 0.2, 75.0, 0.5)
    assert figures["perplexity"] == pytest.approx(12.1825, abs=1e-4)


def test_variety_is_how_many_answers_are_new():
    rows = [{"id": "a", "answer": text, "met": text == "一"} for text in ("一", "一", "二")]
    rows += [{"id": "b", "answer": "三", "met": False}] * 3
    assert variety(rows) == {"met": 0.3333, "distinct": 0.25}
    assert variety(rows[:1]) == {"met": 1.0, "distinct": None}
    assert variety([]) is None


def judged(turns: int, met: bool, exact: bool = False, **more) -> dict:
    return {"messages": [{}] * (2 * turns - 1), "met": met, "exact": exact, **more}


def test_rates_of_probes_by_turns_and_the_drift_of_identity():
    rows = [judged(1, True, True, identity="new"), judged(1, False, identity="mixed"), judged(2, True)]
    metrics = of_probes(rows)
    assert (metrics["exact_match"], metrics["met_single_turn"], metrics["met_multi_turn"]) == (0.3333, 0.5, 1.0)
    assert metrics["rates"]["single_turn"]["of"] == 2
    assert metrics["rates"]["all"]["low"] < 2 / 3 < metrics["rates"]["all"]["high"]
    assert metrics["drift"] == {"new": 0.5, "old": 0.0, "mixed": 0.5, "none": 0.0}
    assert of_probes(rows[:1])["met_multi_turn"] is None


def test_a_system_message_makes_no_probe_multi_turn():
    roles = [["user"], ["system", "user"], ["system", "system", "user"], ["system", "user", "assistant", "user"]]
    rows = [
        {"messages": [{"role": role, "content": "x"} for role in asked], "met": True, "exact": True} for asked in roles
    ]
    rates = of_probes(rows)["rates"]
    assert (rates["single_turn"]["of"], rates["multi_turn"]["of"]) == (3, 1)


@pytest.mark.parametrize(
    ("other", "compares"), [({"metrics_version": 2}, True), ({"metrics_version": 3}, False), ({}, False)]
)
def test_figures_of_other_metrics_versions_do_not_compare(other, compares):
    figures = {"lora": {"metrics_version": 2}, "lora@abc": other}
    if compares:
        refuse_other_versions(figures)
    else:
        with pytest.raises(
            UserError, match=r"different versions of the metrics \(lora by version 2, lora@abc by version [13]"
        ):
            refuse_other_versions(figures)


def test_figures_without_a_version_are_of_the_first():
    refuse_other_versions({"a": {}, "b": {"metrics_version": 1}})
    assert headlines({"metrics_version": 2}) == {"metrics_version": 2}


def test_figures_are_split_by_the_length_limit_and_losses_weigh_tokens():
    rows = [
        {"near_limit": near, "loss": loss, "rouge-l": 10 * loss, "answer_tokens": tokens}
        for near, loss, tokens in ((True, 4, 5), (False, 1, 1), (False, 2, 3))
    ]
    assert of_lengths(rows) == {
        "near_limit": {"rows": 1, "loss": 4.0, "rouge-l": 40.0},
        "far_from_limit": {"rows": 2, "loss": 1.75, "rouge-l": 15.0},
    }
    assert of_lengths(rows[1:])["near_limit"] == {"rows": 0, "loss": None, "rouge-l": None}


def test_headlines_are_those_that_a_model_has():
    figures = {"eval": {"loss": 1.5, "empty_rate": 0.0}, "probes": {"drift": None}, "training": {"seconds": None}}
    assert headlines(figures) == {"loss": 1.5, "empty_rate": 0.0}


def test_rates_have_wilsons_interval():
    """By hand: p = 8/10, z = 1.96: centre (0.8 + z²/20) / (1 + z²/10), half-width by the formula."""
    z, n, p = 1.959964, 10, 0.8
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    found = rate(8, 10)
    assert found["rate"] == 0.8
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert rate(0, 0) is None


def test_drift_is_a_share_of_each_kind():
    assert drift(["new", "new", "old", "none"]) == {"new": 0.5, "old": 0.25, "mixed": 0.0, "none": 0.25}
    assert drift([]) is None
