"""The picture of a training's losses."""

import base64
from xml.etree import ElementTree

import pytest

from flows import loss_chart

SVG = "{http://www.w3.org/2000/svg}"


def point(step: int, split: str, loss: float) -> dict:
    return {"step": step, "split": split, "loss": loss}


def places(picture: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(picture).findall(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines]


def test_a_loss_that_falls_is_drawn_downwards_and_within_the_picture():
    history = [point(1, "train", 4.0), point(5, "train", 2.0), point(5, "eval", 2.5), point(9, "eval", 1.5)]
    train, evaluation = places(loss_chart.draw("lora", history))
    assert train[0][0] < train[1][0] == evaluation[0][0] < evaluation[1][0]
    assert train[0][1] < evaluation[0][1] < evaluation[1][1]  # down the page is a greater y
    assert train[0][1] == loss_chart.TOP
    assert evaluation[1] == (loss_chart.WIDTH - loss_chart.RIGHT, loss_chart.HEIGHT - loss_chart.BOTTOM)


@pytest.mark.parametrize("history", [[point(3, "train", 1.0)], [point(1, "eval", 2.0), point(2, "eval", 2.0)]])
def test_one_point_or_a_flat_line_can_be_drawn(history):
    for line in places(loss_chart.draw("x", history)):
        assert all(0 < x < loss_chart.WIDTH and 0 < y < loss_chart.HEIGHT for x, y in line)


def test_a_name_is_text_and_no_markup():
    picture = loss_chart.data_url("<script>", [point(1, "train", 1.0)])
    assert "<script>" not in base64.b64decode(picture.partition(",")[2]).decode()
