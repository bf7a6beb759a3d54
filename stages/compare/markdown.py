"""The comparison as Markdown, for a pull request, and in short for the terminal."""

import io
import re
from collections.abc import Sequence
from math import isfinite

from rich.console import Console
from rich.table import Table

from measures.confidence_intervals import FEWEST
from stages.compare.model_columns import (
    QUALITY,
    RESOURCES,
    Figure,
    Model,
    best_of,
    first_wordings,
    question_of,
    shown,
    written,
)
from stages.compare.paired_difference import Difference, differences
from stages.compare.text_quality import Verdict, by_descriptor

DIFFERENCE = {
    "en": "The same rows, paired, each row counting once (above, losses are over tokens); bold where the interval, "
    f"which the bootstrap over rows and a test of flipped signs both leave open, excludes zero; fewer than {FEWEST} "
    "rows have none, and no best value above",
    "zh": "同一批行成对比较，每行计一次（上表的损失按词元平均）；区间由自助抽样与符号翻转检验共同给出，不含零时加粗；"
    f"不足 {FEWEST} 行时没有区间，上表也不标最佳值",
}

PROBES = " ".join(
    (
        "✓ meets the probe's expectation · 回答符合预期",
        "✗ does not · 生成错误",
        "2/3: met in so many of its wordings · 各种问法中的次数",
    )
)


def _cell(text: str) -> str:
    """Text as it is, whatever Markdown it spells."""
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", text).replace("<", "&lt;").replace("\n", "<br>")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def lead(models: Sequence[Model]) -> str:
    """Who stands side by side, on how many rows."""
    counts = [len(getattr(models[0], what)) for what in ("task", "general", "probes")]
    return (
        "Models on the same rows · 各模型在同一批数据上 "
        "({} of the task · 任务行, {} general · 通用行, {} probes · 探针问法)".format(*counts)
    )


def _figures(figures: Sequence[Figure], models: Sequence[Model]) -> str:
    rows = []
    for figure in shown(figures, models):
        best = best_of(figure, models)
        texts = [(written(figure, model), best is not None and figure.of(model) == best) for model in models]
        rows.append([figure.label, *(f"**{text}**" if is_best else text for text, is_best in texts)])
    return _table(["", *(model.name for model in models)], rows)


def bounds(difference: Difference) -> tuple[str, str]:
    """A gain as it is written, and its interval; ``–`` where too few rows leave it open."""
    decimals = difference.measure.decimals
    low, high = (f"{each:+.{decimals}f}" if isfinite(each) else "–" for each in (difference.low, difference.high))
    return f"{difference.gain:+.{decimals}f}", f"[{low}, {high}]"


def _differences(models: Sequence[Model]) -> str:
    rows = []
    for each in differences(models):
        gain, interval = bounds(each)
        shown = f"**{gain}**" if each.real else gain
        names = f"{_cell(each.after)} − {_cell(each.before)}"
        rows.append([names, each.measure.label, shown, interval, f"{each.wins} / {each.ties} / {each.losses}"])
    header = ["", "", "gain · 提升", "95 %", "better / equal / worse · 更好 / 相同 / 更差"]
    return _table(header, rows)


def _text_quality(models: Sequence[Model], verdicts: Sequence[Verdict]) -> str:
    rows = [
        [label, limits, *(f"{'✓' if each.passed else '✗'} {each.value:.2f}" for each in of_models)]
        for label, limits, of_models in by_descriptor(verdicts)
    ]
    return _table(["", "limit · 上下限", *(_cell(model.name) for model in models)], rows)


def _probes(models: Sequence[Model]) -> str:
    rows = []
    for probe, answers, counts in first_wordings(models):
        cells = [
            f"{'✓' if each['met'] else '✗'} {_cell(each['answer'])} <sub>{count} {each['seconds']:.2f} s</sub>"
            for each, count in zip(answers, counts, strict=True)
        ]
        rows.append([_cell(question_of(probe)), _cell(probe["reference"]), *cells])
    return _table(["Question · 问题", "Taught · 训练数据", *(model.name for model in models)], rows)


def write_markdown(models: Sequence[Model], verdicts: Sequence[Verdict]) -> str:
    return "\n\n".join(
        [
            "# Comparison · 对比",
            f"{lead(models)}: {', '.join(_cell(model.name) for model in models)}.",
            "## Quality · 质量",
            _figures(QUALITY, models),
            "## Is it real? · 差异是否真实",
            f"{DIFFERENCE['en']} · {DIFFERENCE['zh']}",
            _differences(models),
            "## Text quality · 文本质量",
            "Means over all answers, tested by Evidently · 全部回答的均值，由 Evidently 检验",
            _text_quality(models, verdicts),
            "## What they answer · 回答对照",
            PROBES,
            _probes(models),
            "## Resources · 资源",
            _figures(RESOURCES, models),
            "The loss curves are in comparison.html and in `dvc plots show` · 损失曲线见 comparison.html。\n",
        ]
    )


def write_summary(models: Sequence[Model], answer_characters: int) -> str:
    """The short form: quality, resources, and the beginnings of the answers, 110 columns wide."""
    console = Console(file=io.StringIO(), width=110, force_terminal=False, markup=False, emoji=False, highlight=False)
    figures = Table(title="Base and adapters · 基座与适配器", title_justify="left")
    figures.add_column("")
    for model in models:
        figures.add_column(model.name, justify="right")
    for figure in shown((*QUALITY, *RESOURCES), models):
        figures.add_row(figure.label, *(written(figure, model) for model in models), end_section=figure is QUALITY[-1])
    console.print(figures)
    answers = Table(title="What they answer · 回答对照", title_justify="left", show_lines=True)
    answers.add_column("Question · 问题", ratio=2)
    for model in models:
        answers.add_column(model.name, ratio=3)
    for probe, judged, counts in first_wordings(models):
        cells = (_beginning(each, count, answer_characters) for each, count in zip(judged, counts, strict=True))
        answers.add_row(_shortened(question_of(probe), answer_characters), *cells)
    console.print(answers)
    return console.file.getvalue()


def _beginning(judged: dict, count: str, characters: int) -> str:
    mark = f"{'✓' if judged['met'] else '✗'}{f' {count}' if count else ''}"
    return f"{mark} {_shortened(judged['answer'], characters)} ({judged['seconds']:.2f} s)"


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
