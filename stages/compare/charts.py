"""Vega-Lite specifications of the comparison page's charts.

Texts are objects ``{"en": …, "zh": …}``, which the script of the page replaces by the text in the shown language.
"""

from collections.abc import Sequence

from stages.compare.evaluated_models import EvaluatedModel, loss_curves
from stages.compare.paired_differences import PAIRED_METRICS, PairedDifference
from texts import in_all_languages

_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def loss_charts(models: Sequence[EvaluatedModel]) -> dict[str, dict]:
    """Return the loss curves of all adapters over steps and over seconds, by the id of their element."""
    points = loss_curves(list(models))
    return {
        "loss_by_step": _loss_chart(points, "step", in_all_languages("Step")),
        "loss_by_second": _loss_chart(points, "seconds", in_all_languages("Seconds")),
    }


def _loss_chart(points: Sequence[dict], x_field: str, x_title: dict[str, str]) -> dict:
    split_labels = {
        language: f"datum.value == 'train' ? '{label}' : '{in_all_languages('Evaluation')[language]}'"
        for language, label in in_all_languages("Training").items()
    }
    # Evaluation is solid, training dashed. Points make single values visible and have the tooltip.
    dash = {
        "field": "split",
        "type": "nominal",
        "scale": {"domain": ["eval", "train"], "range": [[1, 0], [5, 4]]},
        "legend": {"orient": "top", "title": None, "labelExpr": split_labels},
    }
    y_title = in_all_languages("Loss")
    return {
        "$schema": _SCHEMA,
        "data": {"values": list(points)},
        "width": "container",
        "height": 320,
        "layer": [
            {"mark": "line", "encoding": {"strokeDash": dash}},
            {"mark": {"type": "point", "filled": True, "size": 26}},
        ],
        "encoding": {
            "x": {"field": x_field, "type": "quantitative", "title": x_title},
            "y": {"field": "loss", "type": "quantitative", "title": y_title, "scale": {"type": "log"}},
            "color": {"field": "adapter", "type": "nominal", "legend": {"orient": "top", "title": None}},
            "detail": {"field": "split"},
            "tooltip": [
                {"field": "adapter", "title": in_all_languages("Adapter")},
                {"field": "split", "title": in_all_languages("Split")},
                {"field": "step", "title": in_all_languages("Step")},
                {"field": "seconds", "title": in_all_languages("Seconds"), "format": ".1f"},
                {"field": "loss", "title": y_title, "format": ".4f"},
            ],
        },
    }


def gain_charts(differences: Sequence[PairedDifference]) -> dict[str, dict]:
    """Return a chart of the gains with their intervals for each metric, by the id of its element.

    Metrics have different scales, so each has its own chart. Differences without an interval are left out.
    """
    charts = {}
    for number, metric in enumerate(PAIRED_METRICS):
        bounded = [difference for difference in differences if difference.metric == metric and difference.is_bounded]
        if bounded:
            title = {
                language: f"{label}: {in_all_languages('Gain')[language]}"
                for language, label in in_all_languages(metric.label).items()
            }
            charts[f"gain_{number}"] = _gain_chart(bounded, title)
    return charts


def _gain_chart(differences: Sequence[PairedDifference], title: dict[str, str]) -> dict:
    values = [
        {"pair": difference.pair, "gain": difference.gain, "low": difference.low, "high": difference.high}
        for difference in differences
    ]
    numbers = {
        "gain": in_all_languages("Gain"),
        "low": in_all_languages("Lower bound"),
        "high": in_all_languages("Upper bound"),
    }
    tooltip = [
        {"field": "pair", "title": in_all_languages("Models")},
        *({"field": field, "title": label, "format": "+.3f"} for field, label in numbers.items()),
    ]
    pair = {"field": "pair", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 320}}
    low = {"field": "low", "type": "quantitative", "title": title}
    zero_line = {"type": "rule", "color": "#888", "strokeDash": [4, 4]}
    point = {"type": "point", "filled": True, "size": 70, "opacity": 1}
    return {
        "$schema": _SCHEMA,
        "data": {"values": values},
        "width": "container",
        "height": {"step": 26},
        "encoding": {"y": pair, "tooltip": tooltip},
        "layer": [
            {"mark": zero_line, "encoding": {"x": {"datum": 0}, "y": None}},
            {"mark": {"type": "rule", "size": 3}, "encoding": {"x": low, "x2": {"field": "high"}}},
            {"mark": point, "encoding": {"x": {"field": "gain", "type": "quantitative"}}},
        ],
    }
