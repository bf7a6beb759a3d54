"""The chart of a training run's losses."""

import base64
from xml.etree import ElementTree

import pytest

from flows import loss_chart

SVG = "{http://www.w3.org/2000/svg}"


def point(step: int, split: str, loss: float) -> dict:
    return {"step": step, "split": split, "loss": loss}


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    """Return the coordinates of the training line and of the evaluation line."""
    lines = ElementTree.fromstring(svg).findall(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines]


def test_falling_loss_falls_within_the_plot():
    history = [point(1, "train", 4.0), point(5, "train", 2.0), point(5, "eval", 2.5), point(9, "eval", 1.5)]
    train, evaluation = lines_of(loss_chart.render_svg("lora", history))
    assert train[0][0] < train[1][0] == evaluation[0][0] < evaluation[1][0]
    assert train[0][1] < evaluation[0][1] < evaluation[1][1]  # y grows downwards
    assert train[0][1] == loss_chart.TOP
    assert evaluation[1] == (loss_chart.WIDTH - loss_chart.RIGHT, loss_chart.HEIGHT - loss_chart.BOTTOM)


@pytest.mark.parametrize("history", [[point(3, "train", 1.0)], [point(1, "eval", 2.0), point(2, "eval", 2.0)]])
def test_single_point_and_constant_loss_are_within_the_plot(history):
    for line in lines_of(loss_chart.render_svg("x", history)):
        assert all(0 < x < loss_chart.WIDTH and 0 < y < loss_chart.HEIGHT for x, y in line)


def test_name_is_escaped():
    url = loss_chart.render_data_url("<script>", [point(1, "train", 1.0)])
    svg = base64.b64decode(url.partition(",")[2]).decode()
    assert "<script>" not in svg
    assert "&lt;script&gt;: loss" in svg


def test_labels_are_in_the_language_of_the_terminal(monkeypatch):
    monkeypatch.setenv("TUNELINE_LANG", "zh")
    assert "lora：损失" in loss_chart.render_svg("lora", [point(1, "train", 1.0)])
