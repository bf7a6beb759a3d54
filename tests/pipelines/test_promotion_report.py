"""The text of a decision, in both languages."""

from dataclasses import asdict

import pytest

from pipelines.promotion_report import Condition, render_conditions, render_report
from stages.promote.promotion_rules import Evidence, GainRule, Guards, Reference, decide

FIGURES = {
    "general": {"loss": 2.0, "rouge-l": 50.0, "rows": 20},
    "test": {"answered": 20, "empty_rate": 0.01, "refusal_rate": 0.0, "repetition": float("nan")},
    "probes": {"rates": {"all": {"rate": 0.8, "low": 0.3, "high": 1.0, "of": 5}}},
}


def decision_over(rows: int) -> dict:
    """Return the content of reports/promotion.json."""
    champion, challenger = (
        Evidence(name, [{"loss": loss + number / 10} for number in range(rows)], FIGURES)
        for name, loss in (("base", 3.0), ("lora", 1.0))
    )
    guards = Guards(
        forgetting=0.1, empty_rate=0.02, probes=0.1, latency=1.5, repetition=0.2, general=0.85, refusals=0.05
    )
    rule = GainRule("loss", margin=0.01, seed_spread=0.04, candidates=20)
    base = Reference("base", loss=2.0, rouge=50.0, probes=0.8, latency=1.0)
    decision = decide(champion, challenger, [base], 1.2, rule, guards)
    return {"champion": "base", "challenger": "lora"} | asdict(decision)


def test_report_has_a_section_for_each_language():
    report = render_report(decision_over(20))
    english, chinese = report.split("# ")[1:]
    assert english.startswith("lora: not promoted\n\nChallenger: lora. Champion: base.\n\n| Condition | Measured |")
    assert "| ✓ Forgetting | general loss 2.0000, base: 2.0000; rise of at most 0.1 allowed |" in english
    assert "| ✓ General answers | general ROUGE-L 50.00, base: 50.00; 100% kept, at least 85% required |" in english
    assert "in seeds (spread 4.0%) and in the choice of the best of 20 does not explain |" in english
    assert "| ✓ Empty answers | 1.00% [0.00%, 16.11%]; at most 2.00% allowed |" in english
    assert "5 probes are too few to judge, at least 6 needed, so they do not count |" in english
    assert "| ✗ Repetition | –; at most 20% allowed |" in english
    assert "| ✓ Latency | 1.20 times that of the base, base: 1.00; factor of at most 1.5 allowed |" in english
    assert "| ✗ 重复率 | –，最多允许 20% |" in chinese
    assert english.count("|") == chinese.count("|")


@pytest.mark.parametrize(("rows", "is_enough"), [(5, False), (6, True)])
def test_too_few_rows_are_named(rows, is_enough):
    gain = Condition.from_json(decision_over(rows)["conditions"][0])
    assert "loss: +2.0000, 95 % interval [" in gain.evidence("en")
    assert ("5 rows are too few for an interval, at least 6 needed" in gain.evidence("en")) != is_enough
    assert ("[–, –]" in gain.evidence("zh")) != is_enough


def test_table_is_in_the_language_of_the_terminal(monkeypatch):
    values = {"before": 0.5, "after": 0.6, "low": 0.4, "high": 0.8, "reference": "base", "allowed": 0.1}
    conditions = [Condition("probes", True, values)]
    monkeypatch.setenv("TUNELINE_LANG", "zh")
    assert "| ✓ 探针通过率 | 60% [40%, 80%]，base：50%；最多允许下降 10% |" in render_conditions(conditions)
    monkeypatch.setenv("TUNELINE_LANG", "en")
    assert "| ✓ Probes met | 60% [40%, 80%], base: 50%; fall of at most 10% allowed |" in render_conditions(conditions)


def test_report_names_the_adapters_that_the_challenger_started_from():
    report = render_report(decision_over(20) | {"started_from": "champion (1a2b3c4d)"})
    assert "The challenger started from: champion (1a2b3c4d)." in report
    assert "挑战者的起始权重：champion (1a2b3c4d)。" in report
