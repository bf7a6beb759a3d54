import json

import pytest
from given import ROOT, write_rows

from models.errors import UserError
from models.storage import read_jsonl
from stages.compare.comparison_page import write_page
from stages.compare.markdown import write_markdown, write_summary
from stages.compare.model_columns import curves, gather
from stages.compare.paired_difference import MEASURES, difference, differences, moved_most

EVIL = '</script><script>alert("1")</script> | <b> [/x] [bold]'


RATE = {"rate": 1.0, "low": 0.68, "high": 1.0, "of": 8}


def metrics(loss: float, training: dict | None) -> dict:
    scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 50.0)
    resources = dict.fromkeys(("train_loss", "seconds", "peak_memory_gib", "tokens_per_second", "steps"))
    return {
        "eval": {"loss": loss, "perplexity": 2.0, **scores},
        "probes": {"exact_match": 0.0, "rates": {"single_turn": RATE, "multi_turn": None}},
        "generation": {"tokens_per_second": 9.0, "seconds": 1.0, "peak_memory_gib": 1.0},
        "training": {**resources, "trainable_parameters": None, **(training or {})},
    }


@pytest.fixture
def evaluated(tmp_path):
    """A base and one adapter with an answer that tries to break out of its cell."""
    for name, answer in (("base", "旧的回答"), ("lora", EVIL)):
        probe = {"id": "a", "messages": [{"role": "user", "content": "问"}], "reference": "答", "answer": answer}
        judged = {"wording": 0, "met": True, "exact": False, "seconds": 0.5}
        write_rows(tmp_path / f"predictions/{name}/probes.jsonl", [probe | judged])
        scores = dict.fromkeys(("rouge-l", "bleu-4", "chrf"), 50.0)
        rows = [probe | scores | {"id": f"r{i}", "loss": 2.0 + i - (name == "lora") * (i - 1)} for i in range(6)]
        write_rows(tmp_path / f"predictions/{name}/eval.jsonl", rows)
        write_rows(tmp_path / f"predictions/{name}/general.jsonl", rows)
        training = {"train_loss": 0.5, "seconds": 3.0} if name == "lora" else None
        figures = metrics(2.0 if name == "base" else 1.0, training)
        (tmp_path / f"predictions/{name}/figures.json").write_text(json.dumps(figures))
    (tmp_path / "weights/lora").mkdir(parents=True)
    history = [{"step": 1, "seconds": 0.1, "split": "train", "loss": 3.0}]
    (tmp_path / "weights/lora/manifest.json").write_text(json.dumps({"training": {"history": history}}))
    return tmp_path


def models_of(folder):
    return gather(["base", "lora"], folder / "predictions", folder / "weights")


def test_side_by_side_with_the_better_one_marked(evaluated):
    text = write_markdown(models_of(evaluated), [])
    assert "| Evaluation loss · 评测损失 | 2.0000 | **1.0000** |" in text
    assert "| ROUGE-1 | 50.00 | 50.00 |" in text  # equal: none is better
    assert "100% [68%, 100%]" in text
    assert "(6 of the task" in text
    assert "旧的回答" in text
    assert "0.50 s" in text
    assert "| Training time, s · 训练用时（秒） | – | 3.0 |" in text


def test_answers_cannot_break_the_page_or_the_table(evaluated):
    page = (ROOT / "reports/page.html").read_text(encoding="utf-8")
    written = write_page(models_of(evaluated), [], page)
    assert EVIL not in written
    assert "alert(&quot;1&quot;)" in written
    assert written.count("<script>") == page.count("<script>") + 2 + 5  # curves, and gains in five measures
    row = next(line for line in write_markdown(models_of(evaluated), []).splitlines() if "旧的回答" in line)
    assert row.replace("\\|", "").count("|") == 5


def test_the_page_needs_no_network(evaluated):
    written = write_page(models_of(evaluated), [], (ROOT / "reports/page.html").read_text(encoding="utf-8"))
    assert "<script src" not in written
    assert "<link" not in written
    assert "{" + "plot_divs}" not in written


def test_the_short_form_fits_a_terminal(evaluated):
    from rich.cells import cell_len

    summary = write_summary(models_of(evaluated), 20)
    assert "lora" in summary
    assert "[/x]" in write_summary(models_of(evaluated), 200).replace("\n", "")
    assert max(map(cell_len, summary.splitlines())) <= 110


def test_curves_are_one_flat_table(evaluated):
    assert curves(models_of(evaluated)) == [
        {"adapter": "lora", "step": 1, "seconds": 0.1, "split": "train", "loss": 3.0}
    ]


@pytest.mark.parametrize(
    "change", [{"id": "b"}, {"messages": [{"role": "user", "content": "别的"}]}, {"reference": "别"}]
)
def test_other_probes_cannot_be_compared(evaluated, change):
    """Nor can one that was rewritten under its old id."""
    (probe,) = read_jsonl(evaluated / "predictions/base/probes.jsonl")
    write_rows(evaluated / "predictions/lora/probes.jsonl", [probe | change])
    with pytest.raises(UserError, match="different probes"):
        models_of(evaluated)


@pytest.mark.parametrize("version", [None, 1])
def test_models_scored_by_another_version_of_the_metrics_are_refused(evaluated, version):
    """As of a revision before an upgrade, which counted other texts as exact."""
    path = evaluated / "predictions/lora/figures.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps(figures | {"metrics_version": version or 2}))
    if version == 1:  # what figures without one have
        assert models_of(evaluated)
        return
    for common in (False, True):
        with pytest.raises(UserError, match="base by version 1, lora by version 2"):
            gather(["base", "lora"], evaluated / "predictions", evaluated / "weights", common)


def test_of_too_few_rows_none_is_the_best(evaluated):
    def rows_of(count: int) -> str:
        for name in ("base", "lora"):
            path = evaluated / f"predictions/{name}/eval.jsonl"
            write_rows(path, (read_jsonl(path) * 2)[:count])
        return write_markdown(models_of(evaluated), [])

    assert "| 2.0000 | **1.0000** |" in rows_of(6)
    assert "| 2.0000 | 1.0000 |" in rows_of(5)


@pytest.mark.parametrize(("probes", "marked"), [(8, True), (6, True), (5, False), (1, False)])
def test_a_rate_over_too_few_probes_is_not_the_best(evaluated, probes, marked):
    for name, rate in (("base", 0.0), ("lora", 1.0)):
        path = evaluated / f"predictions/{name}/figures.json"
        figures = json.loads(path.read_text())
        figures["probes"]["rates"]["single_turn"] = {"rate": rate, "low": rate, "high": rate, "of": probes}
        path.write_text(json.dumps(figures))
    assert ("**100% [100%, 100%]**" in write_markdown(models_of(evaluated), [])) == marked


def test_too_few_rows_have_no_bounds(evaluated):
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/eval.jsonl"
        write_rows(path, read_jsonl(path)[:3])
    models = models_of(evaluated)
    assert "[–, –]" in write_markdown(models, [])
    assert not any(each.real for each in differences(models) if each.measure.rows == "task")
    written = write_page(models, [], (ROOT / "reports/page.html").read_text(encoding="utf-8"))
    assert "[–, –]" in written
    assert "Infinity}" not in written


# Differences ---------------------------------------------------------------------------------------


def test_gains_are_paired_and_counted(evaluated):
    base, lora = models_of(evaluated)
    found = difference(base, lora, MEASURES[0])
    # Losses 2 to 7 of the base; the adapter's differ by 1, 0, -1, -2, -3, -4.
    assert found.gain == pytest.approx(1.5)
    assert (found.wins, found.ties, found.losses) == (4, 1, 1)
    assert found.low < 1.5 < found.high
    assert "| lora − base | Loss · 损失 |" in write_markdown([base, lora], [])
    better, worse = moved_most(base, lora, 2)
    assert [move.row["id"] for move in better] == ["r5", "r4"]
    assert [move.row["id"] for move in worse] == ["r0"]
    assert next(iter(differences([lora, base]))).gain == pytest.approx(-1.5)


def test_of_revisions_with_other_rows_only_those_of_both_count_in_every_figure(evaluated):
    """The adapter was asked two rows fewer, the hardest ones; on the rest it is the base."""
    whole = dict.fromkeys(("rouge-1", "rouge-2"), 50.0)
    whole |= {"exact": False, "empty": False, "repetition": 0.0, "length_ratio": 1.0, "answer_tokens": 1}
    whole["near_limit"] = False
    for name, count in (("base", 6), ("lora", 4)):
        for kind in ("eval", "general"):
            rows = read_jsonl(evaluated / f"predictions/base/{kind}.jsonl")
            write_rows(evaluated / f"predictions/{name}/{kind}.jsonl", [row | whole for row in rows[:count]])
    base, lora = gather(["base", "lora"], evaluated / "predictions", evaluated / "weights", common=True)
    assert [row["id"] for row in base.task] == ["r0", "r1", "r2", "r3"]
    assert base.figures["eval"] == lora.figures["eval"]
    assert base.figures["eval"]["loss"] == pytest.approx((2 + 3 + 4 + 5) / 4)
    with pytest.raises(UserError, match="different rows"):
        models_of(evaluated)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"training": []}',
        '{"training": {"history": [1]}}',
        '{"training": {"history": [{"step": "x"}]}}',
        "{",
    ],
)
def test_a_manifest_that_is_damaged_is_one_sentence(evaluated, content):
    (evaluated / "weights/lora/manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        models_of(evaluated)
