"""The comparison as a page that needs no network: tables, and charts that a person can hover."""

import html
import json
from collections.abc import Iterable, Sequence
from math import isfinite

from stages.compare.markdown import DIFFERENCE, PROBES, bounds, lead
from stages.compare.model_columns import (
    QUALITY,
    RESOURCES,
    Figure,
    Model,
    best_of,
    curves,
    first_wordings,
    question_of,
    shown,
    written,
)
from stages.compare.paired_difference import MEASURES, Move, differences, moved_most
from stages.compare.text_quality import Verdict, by_descriptor

CONTENT_MARK = "{plot_divs}"  # where DVC's own plots go in the same page


def _curve_chart(points: Sequence[dict], along: str, title: str) -> dict:
    """Vega-Lite specification: loss of every adapter, training dashed, evaluation solid."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": list(points)},
        "width": "container",
        "height": 320,
        # The points are there to be hovered; only the lines are solid or dashed.
        "layer": [
            {
                "mark": "line",
                "encoding": {
                    "strokeDash": {
                        "field": "split",
                        "type": "nominal",
                        "scale": {"domain": ["eval", "train"], "range": [[1, 0], [5, 4]]},
                        "legend": {"orient": "top"},
                    }
                },
            },
            {"mark": {"type": "point", "filled": True, "size": 26}},
        ],
        "encoding": {
            "x": {"field": along, "type": "quantitative", "title": title},
            "y": {"field": "loss", "type": "quantitative", "title": "loss · 损失", "scale": {"type": "log"}},
            "color": {"field": "adapter", "type": "nominal", "legend": {"orient": "top"}},
            "detail": {"field": "split"},
            "tooltip": [
                {"field": "adapter"},
                {"field": "split"},
                {"field": "step"},
                {"field": "seconds", "format": ".1f"},
                {"field": "loss", "format": ".4f"},
            ],
        },
    }


def _chart(identity: str, specification: dict) -> str:
    # "<" written as an escape cannot end the script, whatever the data hold.
    content = json.dumps(specification, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<div id="{identity}" style="width:100%"></div>'
        f'<script>vegaEmbed("#{identity}", {content}, {{actions: false}});</script>'
    )


def _table(corner: str, kind: str, models: Sequence[Model], body: Sequence[str]) -> str:
    head = "".join(f'<th class="{kind}">{html.escape(model.name)}</th>' for model in models)
    return (
        f'<div class="wide"><table><thead><tr><th>{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _two_lines(text: str) -> str:
    """A value over its interval, if it has one: columns stay narrow enough for a phone."""
    value, bracket, interval = text.partition(" [")
    return f"{value}<br><small>[{interval}</small>" if bracket else value


def _figures(figures: Sequence[Figure], models: Sequence[Model]) -> str:
    body = []
    for figure in shown(figures, models):
        best = best_of(figure, models)
        kinds = ["number best" if best is not None and figure.of(model) == best else "number" for model in models]
        cells = [
            f'<td class="{kind}">{_two_lines(written(figure, model))}</td>'
            for kind, model in zip(kinds, models, strict=True)
        ]
        body.append(f"<tr><th>{figure.label}</th>{''.join(cells)}</tr>")
    return _table("", "number", models, body)


def _answer(judged: dict, count: str = "") -> str:
    mark = '<span class="met">✓</span>' if judged["met"] else '<span class="missed">✗</span>'
    below = f"<small>{count} {judged['seconds']:.2f} s</small>"
    return f'<td class="answer">{mark} {html.escape(judged["answer"])}<br>{below}</td>'


def _probe(probe: dict, cells: Iterable[str]) -> str:
    return f'<tr><td class="question">{html.escape(question_of(probe))}</td>{"".join(cells)}</tr>'


def _probes(models: Sequence[Model]) -> str:
    """Each probe in its first wording; all wordings to unfold."""
    first = [
        _probe(probe, (_answer(each, count) for each, count in zip(answers, counts, strict=True)))
        for probe, answers, counts in first_wordings(models)
    ]
    every = [
        _probe(probe, (_answer(model.probes[index]) for model in models))
        for index, probe in enumerate(models[0].probes)
    ]
    table = _table("Question · 问题", "answer", models, first)
    if len(every) == len(first):
        return table
    unfolded = _table("Question · 问题", "answer", models, every)
    return f"{table}<details><summary>All wordings · 全部问法 ({len(every)})</summary>{unfolded}</details>"


def _differences(models: Sequence[Model]) -> str:
    body = []
    for each in differences(models):
        gain, interval = bounds(each)
        kind = ("good" if each.gain > 0 else "bad") if each.real else "even"
        names = f"{html.escape(each.after)} − {html.escape(each.before)}"
        body.append(
            f"<tr><th>{names}</th><td>{each.measure.label}</td>"
            f'<td class="number {kind}">{gain}</td><td class="number">{interval}</td>'
            f'<td class="number">{each.wins} / {each.ties} / {each.losses}</td></tr>'
        )
    head = ("", "", "gain · 提升", "95 %", "better / equal / worse · 更好 / 相同 / 更差")
    cells = "".join(f"<th{' class=number' * (index > 1)}>{text}</th>" for index, text in enumerate(head))
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _text_quality(models: Sequence[Model], verdicts: Sequence[Verdict]) -> str:
    body = []
    for label, limits, of_models in by_descriptor(verdicts):
        marks = {True: '<span class="met">✓</span>', False: '<span class="missed">✗</span>'}
        cells = [f'<td class="number">{marks[each.passed]} {each.value:.2f}</td>' for each in of_models]
        body.append(f"<tr><th>{label}<br><small>{limits}</small></th>{''.join(cells)}</tr>")
    return _table("", "number", models, body)


def _interval_charts(models: Sequence[Model]) -> str:
    """One chart a measure, since each has a scale of its own."""
    found = list(differences(models))
    charts = []
    for number, measure in enumerate(MEASURES):
        values = [
            {"pair": f"{each.after} − {each.before}", "gain": each.gain, "low": each.low, "high": each.high}
            for each in found
            if each.measure == measure and isfinite(each.low) and isfinite(each.high)
        ]
        if values:
            charts.append(_chart(f"gain_{number}", _interval_chart(values, measure.label)))
    return "".join(charts)


def _interval_chart(values: Sequence[dict], title: str) -> dict:
    tooltip = [{"field": "pair"}, *({"field": key, "format": "+.3f"} for key in ("gain", "low", "high"))]
    pair = {"field": "pair", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 320}}
    bound = {"field": "low", "type": "quantitative", "title": f"{title}: gain · 提升"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": list(values)},
        "width": "container",
        "height": {"step": 26},
        "encoding": {"y": pair, "tooltip": tooltip},
        "layer": [
            {
                "mark": {"type": "rule", "color": "#888", "strokeDash": [4, 4]},
                "encoding": {"x": {"datum": 0}, "y": None},
            },
            {"mark": {"type": "rule", "size": 3}, "encoding": {"x": bound, "x2": {"field": "high"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": {"field": "gain", "type": "quantitative"}},
            },
        ],
    }


def _moves(models: Sequence[Model]) -> str:
    base, *adapters = models
    parts = []
    for adapter in adapters:
        better, worse = moved_most(base, adapter)
        for moves, title in ((better, "loss fell most · 损失下降最多"), (worse, "loss rose most · 损失上升最多")):
            if moves:
                summary = f"{html.escape(adapter.name)}: {title} ({len(moves)})"
                parts.append(f"<details><summary>{summary}</summary>{_move_table(moves, base, adapter)}</details>")
    return "".join(parts)


def _move_table(moves: Sequence[Move], base: Model, adapter: Model) -> str:
    body = [
        f'<tr><td class="question">{html.escape(question_of(move.row))}</td>'
        f'<td class="answer">{html.escape(move.row["reference"])}</td>'
        + "".join(
            f'<td class="answer">{html.escape(row["answer"])}<br><small>{row["loss"]:.3f}</small></td>'
            for row in (move.row, move.other)
        )
        + "</tr>"
        for move in moves
    ]
    names = ("Question · 问题", "Taught · 训练数据", html.escape(base.name), html.escape(adapter.name))
    head = "".join(f'<th class="answer">{name}</th>' for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def write_page(models: Sequence[Model], verdicts: Sequence[Verdict], page: str) -> str:
    """Fill the page template with the comparison."""
    points = curves(list(models))
    sections = [
        "<h1>Comparison · 对比</h1>",
        f'<p class="lead">{lead(models)}</p>',
        "<h2>Quality · 质量</h2>",
        _figures(QUALITY, models),
        "<h2>Is it real? · 差异是否真实</h2>",
        f'<p class="lead">{DIFFERENCE["en"]} · {DIFFERENCE["zh"]}</p>',
        _differences(models),
        _interval_charts(models),
        "<h2>Text quality · 文本质量</h2>",
        '<p class="lead">Means over all answers, tested by Evidently · 全部回答的均值，由 Evidently 检验</p>',
        _text_quality(models, verdicts),
        "<h2>What moved most · 变化最大的行</h2>",
        _moves(models),
        "<h2>What they answer · 回答对照</h2>",
        f'<p class="lead">{PROBES}</p>',
        _probes(models),
        "<h2>Loss curves · 损失曲线</h2>",
        _chart("by_step", _curve_chart(points, "step", "step · 步")),
        _chart("by_second", _curve_chart(points, "seconds", "seconds · 秒")),
        "<h2>Resources · 资源</h2>",
        _figures(RESOURCES, models),
    ]
    return page.replace("{refresh_tag}", "").replace(CONTENT_MARK, "\n".join(sections))
