"""The comparison: tables, page, summary, and the rows that models are compared on."""

import json
import re

import pytest
from shared_data import ROOT, write_rows

from measures.metrics import CONFIDENCE_LEVEL, summarize_probes
from models.errors import UserError
from models.storage import read_jsonl
from stages.compare.comparison_page import render_page
from stages.compare.evaluated_models import load_models, loss_curves
from stages.compare.markdown import render_markdown
from stages.compare.paired_differences import (
    PAIRED_METRICS,
    largest_loss_changes,
    paired_difference,
    paired_differences,
)
from stages.compare.terminal_summary import render_summary
from stages.compare.verdicts import judge_models
from texts import LANGUAGES

MARKUP = '</script><script>alert("1")</script> | <b> [/x] [bold]'
RATE = {"rate": 1.0, "low": 0.68, "high": 1.0, "of": 8}
FRAME = (ROOT / "reports/page.html").read_text(encoding="utf-8")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def metrics(loss: float, training: dict | None) -> dict:
    scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 50.0)
    resources = dict.fromkeys(("train_loss", "seconds", "peak_memory_gib", "tokens_per_second", "steps"))
    return {
        "eval": {"loss": loss},
        "test": {"loss": loss, "perplexity": 2.0, **scores},
        "general": {"loss": loss, "rouge-l": 96.8 if loss > 1.5 else 31.7},
        "probes": {"exact_match": 0.0, "rates": {"single_turn": RATE, "multi_turn": None}},
        "generation": {"tokens_per_second": 9.0, "seconds": 1.0, "peak_memory_gib": 1.0},
        "training": {**resources, "trainable_parameters": None, **(training or {})},
    }


@pytest.fixture
def evaluated(tmp_path):
    """Predictions of the base model and of an adapter whose answers contain HTML, Markdown and rich markup."""
    for name, answer in (("base", "旧的回答"), ("lora", MARKUP)):
        probe = {"id": "a", "messages": [{"role": "user", "content": "问"}], "reference": "答", "answer": answer}
        judged = {"wording": 0, "met": True, "exact": False, "seconds": 0.5}
        write_rows(tmp_path / f"predictions/{name}/probes.jsonl", [probe | judged])
        scores = dict.fromkeys(("rouge-l", "bleu-4", "chrf"), 50.0)
        rows = [probe | scores | {"id": f"r{i}", "loss": 2.0 + i - (name == "lora") * (i - 1)} for i in range(6)]
        write_rows(tmp_path / f"predictions/{name}/test.jsonl", rows)
        write_rows(tmp_path / f"predictions/{name}/general.jsonl", rows)
        training = {"train_loss": 0.5, "seconds": 3.0} if name == "lora" else None
        figures = metrics(2.0 if name == "base" else 1.0, training)
        (tmp_path / f"predictions/{name}/figures.json").write_text(json.dumps(figures))
    (tmp_path / "weights/lora").mkdir(parents=True)
    history = [{"step": 1, "seconds": 0.1, "split": "train", "loss": 3.0}]
    (tmp_path / "weights/lora/manifest.json").write_text(json.dumps({"training": {"history": history}}))
    return tmp_path


def load(folder, common_rows_only=False):
    return load_models(["base", "lora"], folder / "predictions", folder / "weights", common_rows_only)


def without_probes(folder) -> None:
    """Remove the probes from the predictions, as stage evaluate writes them without probes."""
    for name in ("base", "lora"):
        predictions = folder / f"predictions/{name}"
        (predictions / "probes.jsonl").write_text("")
        figures = json.loads((predictions / "figures.json").read_text()) | {"probes": None}
        (predictions / "figures.json").write_text(json.dumps(figures))


# Probes --------------------------------------------------------------------------------------------


def render_all(models) -> str:
    texts = [render_page(models, [], "{plot_divs}")]
    for language in LANGUAGES:
        texts += [render_markdown(models, [], language), render_summary(models, 20, language)]
    return "\n".join(texts)


DEMO_WORDS = re.compile(
    r"probe|探针|wording|问法|identity|new name|旧名字|ChatGLM-6B-test|wgs|你是谁|造句", re.IGNORECASE
)


def test_report_on_medical_data_does_not_mention_the_demo(evaluated):
    assert DEMO_WORDS.search(render_all(load(evaluated)))
    without_probes(evaluated)
    medical = {"messages": [{"role": "user", "content": "高血压要注意什么？"}], "reference": "少盐，按时服药。"}
    for name in ("base", "lora"):
        for kind in ("test", "general"):
            path = evaluated / f"predictions/{name}/{kind}.jsonl"
            write_rows(path, [row | medical for row in read_jsonl(path)])
    report = render_all(load(evaluated))
    assert "高血压" in report
    assert not DEMO_WORDS.search(report)


def test_seen_and_unseen_wordings_are_shown_apart(evaluated):
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/probes.jsonl"
        (probe,) = read_jsonl(path)
        write_rows(path, [probe | {"seen": True}, probe | {"wording": 1, "seen": False, "met": False}])
        figures_path = evaluated / f"predictions/{name}/figures.json"
        figures = json.loads(figures_path.read_text()) | {"probes": summarize_probes(read_jsonl(path))}
        figures_path.write_text(json.dumps(figures))
    markdown = render_markdown(load(evaluated), [], "en")
    assert "| Probes met, unseen wordings | 0% [0%, 79%] | 0% [0%, 79%] |" in markdown
    assert "| Probes met, wordings seen in training | 100% [21%, 100%] |" in markdown
    assert "| 问 <sub>seen wording</sub> |" in markdown
    page = render_page(load(evaluated), [], FRAME)
    assert page.count("没见过的问法</span></small>") == 1


def test_general_rows_that_stand_in_the_training_rows_are_named(evaluated):
    assert "measure forgetting" not in render_all(load(evaluated))
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/general.jsonl"
        first, *rows = read_jsonl(path)
        write_rows(path, [first | {"in_training": 0.9}, *rows])
        figures_path = evaluated / f"predictions/{name}/figures.json"
        figures = json.loads(figures_path.read_text()) | {"of": {"general_source": "data/mine|*x*"}}
        figures_path.write_text(json.dumps(figures))
    markdown = render_markdown(load(evaluated), [], "en")
    assert "1 of the general rows occur in the training rows, so they do not measure forgetting: 问" in markdown
    assert r"6 general rows (data/mine\|\*x\*)" in markdown
    assert "有 1 条通用对话出现在训练数据中" in render_page(load(evaluated), [], FRAME)


# Tables --------------------------------------------------------------------------------------------


def test_best_value_of_each_metric_is_bold(evaluated):
    text = render_markdown(load(evaluated), [], "en")
    assert "| Test loss | 2.0000 | **1.0000** |" in text
    assert "| ROUGE-1 | 50.00 | 50.00 |" in text  # equal values: none is the best
    assert "100% [68%, 100%]" in text
    assert "same 6 task rows" in text
    assert "旧的回答" in text
    assert "0.50 s" in text
    assert "| Training time, s | – | 3.0 |" in text


def test_markdown_and_summary_are_in_one_language(evaluated):
    models = load(evaluated)
    assert "| 测试损失 | 2.0000 | **1.0000** |" in render_markdown(models, [], "zh")
    assert "测试损失" in render_summary(models, 20, "zh")
    for text in (render_markdown(models, [], "en"), render_summary(models, 20, "en")):
        for data in ("旧的回答", "问", "答"):
            text = text.replace(data, "")
        assert not CHINESE.search(text)


def test_no_value_is_best_with_too_few_rows(evaluated):
    def markdown_with(count: int) -> str:
        for name in ("base", "lora"):
            path = evaluated / f"predictions/{name}/test.jsonl"
            write_rows(path, (read_jsonl(path) * 2)[:count])
        return render_markdown(load(evaluated), [], "en")

    assert "| 2.0000 | **1.0000** |" in markdown_with(6)
    assert "| 2.0000 | 1.0000 |" in markdown_with(5)


@pytest.mark.parametrize(("probes", "is_bold"), [(8, True), (6, True), (5, False), (1, False)])
def test_no_rate_is_best_with_too_few_probes(evaluated, probes, is_bold):
    for name, rate in (("base", 0.0), ("lora", 1.0)):
        path = evaluated / f"predictions/{name}/figures.json"
        figures = json.loads(path.read_text())
        figures["probes"]["rates"]["single_turn"] = {"rate": rate, "low": rate, "high": rate, "of": probes}
        path.write_text(json.dumps(figures))
    assert ("**100% [100%, 100%]**" in render_markdown(load(evaluated), [], "en")) == is_bold


def test_summary_fits_a_terminal_of_110_columns(evaluated):
    from rich.cells import cell_len

    for language in LANGUAGES:
        summary = render_summary(load(evaluated), 20, language)
        assert "lora" in summary
        assert "[/x]" in render_summary(load(evaluated), 200, language).replace("\n", "")
        assert max(map(cell_len, summary.splitlines())) <= 110


def test_loss_curves_are_one_flat_table(evaluated):
    assert loss_curves(load(evaluated)) == [
        {"adapter": "lora", "step": 1, "seconds": 0.1, "split": "train", "loss": 3.0}
    ]


# Page ----------------------------------------------------------------------------------------------


def test_page_and_markdown_escape_answers(evaluated):
    page = render_page(load(evaluated), [], FRAME)
    assert MARKUP not in page
    assert "alert(&#34;1&#34;)" in page
    assert page.count("<script>") == FRAME.count("<script>") + 1
    row = next(line for line in render_markdown(load(evaluated), [], "en").splitlines() if "旧的回答" in line)
    assert row.replace("\\|", "").count("|") == 5


def test_model_names_are_escaped_in_charts_too(evaluated):
    for folder in ("predictions", "weights"):
        (evaluated / folder / "lora").rename(evaluated / folder / "<b>x<")
    models = load_models(["base", "<b>x<"], evaluated / "predictions", evaluated / "weights")
    page = render_page(models, [], FRAME.partition("<script>")[0] + "{plot_divs}")
    assert "<b>x" not in page
    assert "&lt;b&gt;x&lt;" in page
    assert "\\u003cb\\u003ex" in page


def test_page_needs_no_network(evaluated):
    page = render_page(load(evaluated), [], FRAME)
    assert "<script src" not in page
    assert "<link" not in page
    assert "{" + "plot_divs}" not in page


def test_page_has_every_text_in_both_languages(evaluated):
    write_task_losses(evaluated, 0.5)  # its six general rows are too few for an interval
    page = render_page(load(evaluated), [], FRAME)
    content = page.partition("<body>")[2]
    assert '<span lang="en">Test loss</span><span lang="zh">测试损失</span>' in content
    assert content.count('<span lang="en">') == content.count('<span lang="zh">')
    for data in ("旧的回答", "问", "答", "中文"):  # the button names a language in that language
        content = content.replace(data, "")
    visible, script = content.split("<script>")
    assert not CHINESE.search(re.sub(r'<span lang="zh">.*?</span>', "", visible))
    charts = json.loads(re.search(r"const charts = (.*);", script)[1])
    assert set(charts) == {"loss_by_step", "loss_by_second", *(f"gain_{i}" for i in range(4))}
    assert charts["loss_by_step"]["encoding"]["x"]["title"] == {"en": "Step", "zh": "步"}


# Verdict -------------------------------------------------------------------------------------------


def change_figures(folder, name: str, **change) -> None:
    path = folder / f"predictions/{name}/figures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def write_task_losses(folder, gain: float, rows: int = 30, rouge: float | None = None) -> None:
    for name, change in (("base", 0.0), ("lora", -gain)):
        path = folder / f"predictions/{name}/test.jsonl"
        row = read_jsonl(path)[0]
        answers = {} if rouge is None or name == "base" else {"rouge-l": row["rouge-l"] + rouge}
        write_rows(
            path, [row | answers | {"id": str(i), "loss": 2.0 + i / 9 + change * (1 + i % 3)} for i in range(rows)]
        )


@pytest.mark.parametrize(
    ("gain", "rows", "start"),
    [
        (0.5, 30, "lora is better than base on the test rows; it "),
        (-0.5, 30, "lora is worse than base on the test rows; it "),
        (0.0, 30, "lora is not proven better than base on the test rows; it "),
        (0.5, 3, "lora cannot be told from base: 3 rows are too few, 8 needed; it "),
    ],
)
def test_reports_open_with_the_verdict(evaluated, gain, rows, start):
    write_task_losses(evaluated, gain, rows)
    models = load(evaluated)
    (verdict,) = judge_models(models, list(paired_differences(models)))
    sentence = verdict.sentence("en")
    assert sentence.startswith(start)
    assert sentence.endswith(
        "has forgotten 67% of its answers to general conversations (ROUGE-L), and answers 0% of the test rows exactly."
    )
    assert " ".join(render_summary(models, 20, "en").split()).startswith(sentence)
    assert render_markdown(models, [], "en").split("\n")[2].startswith(f"- **{start}")
    assert render_page(models, [], FRAME).partition("<body>")[2].split("<h2>")[0].count(start) == 1
    assert "在通用对话上遗忘了 67% 的水平" in render_summary(models, 20, "zh").replace("\n", "")


def test_verdict_is_not_better_if_the_answers_are_worse(evaluated):
    write_task_losses(evaluated, 0.5, rouge=-5.0)
    models = load(evaluated)
    (verdict,) = judge_models(models, list(paired_differences(models)))
    assert (verdict.outcome, verdict.tone) == ("contradicted", "mixed")
    assert verdict.sentence("en").startswith("lora predicts the test rows better than base (loss), but its own answers")
    write_task_losses(evaluated, 0.5, rouge=5.0)
    models = load(evaluated)
    assert judge_models(models, list(paired_differences(models)))[0].outcome == "better"


def test_verdict_names_the_probes_and_what_is_kept(evaluated):
    change_figures(evaluated, "lora", general={"loss": 2.0, "rouge-l": 95.0}, probes={"rates": {"all": RATE}})
    models = load(evaluated)
    (verdict,) = judge_models(models, list(paired_differences(models)))
    assert "keeps 98% of its answers" in verdict.sentence("en")
    assert verdict.sentence("en").endswith("and passes 100% of the probes.")
    assert [value for _, value in verdict.numbers("en")][1:] == ["98%", "100%"]


def test_verdict_on_plain_texts_names_their_perplexity(evaluated):
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/test.jsonl"
        rows = [
            {"id": row["id"], "messages": [], "reference": "一段文字", "loss": row["loss"]} for row in read_jsonl(path)
        ]
        write_rows(path, rows)
    without_probes(evaluated)
    change_figures(
        evaluated, "lora", general={"loss": 2.0, "rouge-l": 960.0}, test={"loss": 1.0, "perplexity": 1289.34}
    )
    models = load(evaluated)
    (verdict,) = judge_models(models, list(paired_differences(models)))
    assert verdict.sentence("en").endswith(
        "it keeps 100% of its answers to general conversations (ROUGE-L), and has a perplexity of 1,289.3 on the test "
        "rows."
    )
    assert verdict.sentence("zh").endswith("在测试样本上的困惑度为 1,289.3。")
    assert verdict.numbers("en")[1:] == [("General ROUGE-L kept", "100%"), ("Perplexity", "1,289.3")]


# Differences ---------------------------------------------------------------------------------------


def test_too_few_rows_have_no_interval(evaluated):
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/test.jsonl"
        write_rows(path, read_jsonl(path)[:3])
    models = load(evaluated)
    assert "[–, –]" in render_markdown(models, [], "en")
    differences = list(paired_differences(models))
    assert not any(difference.is_significant for difference in differences if difference.metric.rows == "task")
    page = render_page(models, [], FRAME)
    assert "[–, –]" in page
    assert "Infinity}" not in page


def test_gains_are_paired_by_row_and_counted(evaluated):
    base, lora = load(evaluated)
    difference = paired_difference(base, lora, PAIRED_METRICS[0])
    # The base has losses 2 to 7; those of the adapter differ by 1, 0, -1, -2, -3, -4.
    assert difference.gain == pytest.approx(1.5)
    assert (difference.wins, difference.ties, difference.losses) == (4, 1, 1)
    assert difference.low < 1.5 < difference.high
    assert "| lora − base | Loss |" in render_markdown([base, lora], [], "en")
    fell, rose = largest_loss_changes(base, lora, 2)
    assert [change.before["id"] for change in fell] == ["r5", "r4"]
    assert [change.before["id"] for change in rose] == ["r0"]
    assert next(iter(paired_differences([lora, base]))).gain == pytest.approx(-1.5)


# Rows ----------------------------------------------------------------------------------------------


def test_plain_texts_are_compared_by_their_loss_only(evaluated):
    for name in ("base", "lora"):
        path = evaluated / f"predictions/{name}/test.jsonl"
        text = {"id": "text", "messages": [], "reference": "一段文字", "loss": 3.0 - (name == "lora")}
        write_rows(path, [*read_jsonl(path), text])
    differences = {difference.metric.label: difference for difference in paired_differences(load(evaluated))}
    assert (differences["Loss"].wins, differences["Loss"].ties) == (5, 1)
    assert differences["ROUGE-L"].ties == 6


def test_intervals_are_corrected_for_the_metrics_that_rows_have(evaluated):
    for name in ("base", "lora"):
        text = {"id": "text", "messages": [], "reference": "一段文字", "loss": 3.0 - (name == "lora")}
        write_rows(evaluated / f"predictions/{name}/test.jsonl", [text | {"id": str(number)} for number in range(9)])
        write_rows(evaluated / f"predictions/{name}/general.jsonl", [])
    (difference,) = paired_differences(load(evaluated))
    assert difference.confidence == CONFIDENCE_LEVEL


@pytest.mark.parametrize(
    "change", [{"id": "b"}, {"messages": [{"role": "user", "content": "别的"}]}, {"reference": "别"}]
)
def test_models_with_different_probes_are_not_compared(evaluated, change):
    """A probe that was rewritten under the same id is a different probe."""
    (probe,) = read_jsonl(evaluated / "predictions/base/probes.jsonl")
    write_rows(evaluated / "predictions/lora/probes.jsonl", [probe | change])
    with pytest.raises(UserError, match="different probes"):
        load(evaluated)


@pytest.mark.parametrize("version", [None, 1])
def test_models_scored_by_different_metrics_versions_are_not_compared(evaluated, version):
    """The base comes from a revision before an upgrade, which scored other texts as exact."""
    path = evaluated / "predictions/lora/figures.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps(figures | {"metrics_version": version or 2}))
    if version == 1:  # metrics without a version are of version 1
        assert load(evaluated)
        return
    for common_rows_only in (False, True):
        with pytest.raises(UserError, match="base has version 1, lora has version 2"):
            load(evaluated, common_rows_only)


def test_metrics_of_revisions_with_different_rows_are_recomputed_over_the_common_rows(evaluated):
    """The adapter lacks the two rows with the highest losses and equals the base on all others."""
    scores = dict.fromkeys(("rouge-1", "rouge-2"), 50.0)
    scores |= {
        "exact": False,
        "empty": False,
        "refusal": False,
        "repetition": 0.0,
        "length_ratio": 1.0,
        "answer_tokens": 1,
    }
    scores["near_limit"] = False
    for name, count in (("base", 6), ("lora", 4)):
        for kind in ("test", "general"):
            rows = read_jsonl(evaluated / f"predictions/base/{kind}.jsonl")
            write_rows(evaluated / f"predictions/{name}/{kind}.jsonl", [row | scores for row in rows[:count]])
    base, lora = load(evaluated, common_rows_only=True)
    assert [row["id"] for row in base.task] == ["r0", "r1", "r2", "r3"]
    assert base.figures["test"] == lora.figures["test"]
    assert base.figures["test"]["loss"] == pytest.approx((2 + 3 + 4 + 5) / 4)
    with pytest.raises(UserError, match="different rows"):
        load(evaluated)


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
def test_damaged_manifest_is_an_error(evaluated, content):
    (evaluated / "weights/lora/manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        load(evaluated)
