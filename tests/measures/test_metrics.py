import pytest

from measures.metrics import (
    identity_shares,
    pass_rate,
    require_same_version,
    select_dvc_metrics,
    summarize_by_length,
    summarize_probes,
    summarize_sampled,
    summarize_samples,
)
from models.errors import UserError


def test_losses_are_averaged_over_tokens_and_scores_over_rows():
    scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4", "chrf"), 50.0)
    properties = {"exact": False, "empty": False, "refusal": False, "repetition": 0.0, "length_ratio": 1.0}
    rows = [
        scores | properties | {"loss": 1.0, "answer_tokens": 1, "divergence": 0.5},
        scores | properties | {"loss": 3.0, "answer_tokens": 3, "divergence": 0.1, "exact": True, "rouge-l": 100.0},
    ]
    metrics = summarize_samples(rows)
    assert (metrics["loss"], metrics["divergence"], metrics["rouge-l"], metrics["exact_match"]) == (2.5, 0.2, 75.0, 0.5)
    assert metrics["perplexity"] == pytest.approx(12.1825, abs=1e-4)


def test_distinct_share_of_sampled_answers():
    rows = [{"id": "a", "answer": text, "met": text == "一"} for text in ("一", "一", "二")]
    rows += [{"id": "b", "answer": "三", "met": False}] * 3
    assert summarize_sampled(rows) == {"met": 0.3333, "distinct": 0.25}
    assert summarize_sampled(rows[:1]) == {"met": 1.0, "distinct": None}
    assert summarize_sampled([]) is None


def probe_row(turns: int, met: bool, exact: bool = False, **more) -> dict:
    return {"messages": [{}] * (2 * turns - 1), "met": met, "exact": exact, **more}


def test_pass_rates_by_turns_and_identity_shares():
    rows = [probe_row(1, True, True, identity="new"), probe_row(1, False, identity="mixed"), probe_row(2, True)]
    metrics = summarize_probes(rows)
    assert (metrics["exact_match"], metrics["met_single_turn"], metrics["met_multi_turn"]) == (0.3333, 0.5, 1.0)
    assert metrics["rates"]["single_turn"]["of"] == 2
    assert metrics["rates"]["all"]["low"] < 2 / 3 < metrics["rates"]["all"]["high"]
    assert metrics["drift"] == {"new": 0.5, "old": 0.0, "mixed": 0.5, "none": 0.0}
    assert summarize_probes(rows[:1])["met_multi_turn"] is None


def test_system_message_does_not_count_as_a_turn():
    roles = [["user"], ["system", "user"], ["system", "system", "user"], ["system", "user", "assistant", "user"]]
    rows = [
        {"messages": [{"role": role, "content": "x"} for role in row_roles], "met": True, "exact": True}
        for row_roles in roles
    ]
    rates = summarize_probes(rows)["rates"]
    assert (rates["single_turn"]["of"], rates["multi_turn"]["of"]) == (3, 1)


@pytest.mark.parametrize(("other", "version"), [({"metrics_version": 3}, 3), ({}, 1)])
def test_metrics_of_different_versions_are_not_comparable(other, version):
    with pytest.raises(UserError, match=f"lora has version 2, lora@abc has version {version}"):
        require_same_version({"lora": {"metrics_version": 2}, "lora@abc": other})


def test_metrics_of_the_same_version_are_comparable():
    require_same_version({"lora": {"metrics_version": 2}, "lora@abc": {"metrics_version": 2}})
    require_same_version({"a": {}, "b": {"metrics_version": 1}})  # no version is version 1


def test_summary_by_length_averages_losses_over_tokens():
    rows = [
        {"near_limit": near, "loss": loss, "rouge-l": 10 * loss, "answer_tokens": tokens}
        for near, loss, tokens in ((True, 4, 5), (False, 1, 1), (False, 2, 3))
    ]
    assert summarize_by_length(rows) == {
        "near_limit": {"rows": 1, "loss": 4.0, "rouge-l": 40.0},
        "far_from_limit": {"rows": 2, "loss": 1.75, "rouge-l": 15.0},
    }
    assert summarize_by_length(rows[1:])["near_limit"] == {"rows": 0, "loss": None, "rouge-l": None}


def test_dvc_metrics_omit_missing_values_and_are_rounded():
    metrics = {
        "eval": {"loss": 1.54321},
        "test": {"loss": 1.6, "rouge-l": 45.678, "empty_rate": 0.0},
        "probes": {"rates": {"all": None}},
        "training": {"tokens_per_second": 1234.5, "peak_memory_gib": None},
    }
    assert select_dvc_metrics(metrics) == {"loss": 1.54321, "test": 1.6, "rouge-l": 45.68, "tok/s": 1234}


def test_pass_rate_has_wilsons_interval():
    """By hand: p = 8/10, z = 1.96: centre (0.8 + z²/20) / (1 + z²/10), half-width by the formula."""
    z, n, p = 1.959964, 10, 0.8
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    rate = pass_rate(8, 10)
    assert rate["rate"] == 0.8
    assert (rate["low"], rate["high"]) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert pass_rate(0, 0) is None


def test_identity_shares():
    assert identity_shares(["new", "new", "old", "none"]) == {"new": 0.5, "old": 0.25, "mixed": 0.0, "none": 0.25}
    assert identity_shares([]) is None
