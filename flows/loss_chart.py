"""Loss curves of a training run as an SVG image in the terminal's language, since Prefect's UI has no charts."""

import base64
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from texts import translatable, translate

WIDTH, HEIGHT = 640, 320  # pixels, as all lengths here
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 44  # margins around the plot
NUM_TICKS = 5
LEGEND_STEP = 190
TITLE_COLOR, LABEL_COLOR, GRID_COLOR = "#1f2933", "#52606d", "#e4e7eb"


class LineStyle(NamedTuple):
    label: str
    color: str
    width: float
    point_radius: float


LINES = {  # training has many points, evaluation few
    "train": LineStyle(translatable("Training"), "#9aa5b1", 1.2, 1.2),
    "eval": LineStyle(translatable("Evaluation"), "#1f6feb", 2, 3),
}


def render_data_url(name: str, history: Sequence[dict]) -> str:
    """Return the chart as a ``data:`` URL."""
    return f"data:image/svg+xml;base64,{base64.b64encode(render_svg(name, history).encode()).decode()}"


def render_svg(name: str, history: Sequence[dict]) -> str:
    """Return a chart of loss against steps as SVG.

    Args:
        name: of the adapter.
        history: at least one point ``{step, split, loss}``; the split is ``train`` or ``eval``, the loss finite.
    """
    steps, losses = ([point[key] for point in history] for key in ("step", "loss"))
    scale = _Scale(*_value_range(steps), *_value_range(losses))
    svg = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}"},
        **{"font-family": "sans-serif", "font-size": "13"},
    )
    ElementTree.SubElement(svg, "rect", width=str(WIDTH), height=str(HEIGHT), fill="white")
    _add_text(svg, LEFT, 18, translate("{adapter}: loss", adapter=name), TITLE_COLOR)
    _add_text(svg, LEFT, HEIGHT - 8, translate("Step"), LABEL_COLOR)
    _add_axes(svg, scale)
    for number, (split, style) in enumerate(LINES.items()):
        _add_text(svg, LEFT + LEGEND_STEP * number, TOP - 10, f"― {translate(style.label)}", style.color)
        points = [scale.position(point["step"], point["loss"]) for point in history if point["split"] == split]
        _add_line(svg, points, style)
    return ElementTree.tostring(svg, encoding="unicode")


class _Scale(NamedTuple):
    """Ranges of both axes."""

    first_step: float
    last_step: float
    min_loss: float
    max_loss: float

    def position(self, step: float, loss: float) -> tuple[float, float]:
        """Return the coordinates of a point."""
        x_share = (step - self.first_step) / (self.last_step - self.first_step)
        y_share = (self.max_loss - loss) / (self.max_loss - self.min_loss)
        return round(LEFT + x_share * (WIDTH - LEFT - RIGHT), 1), round(TOP + y_share * (HEIGHT - TOP - BOTTOM), 1)


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    """Return minimum and maximum; a range of length 1 around the value if all are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _add_axes(svg: ElementTree.Element, scale: _Scale) -> None:
    """Add horizontal grid lines with losses, and steps below the plot."""
    for tick in range(NUM_TICKS):
        share = tick / (NUM_TICKS - 1)
        step = scale.first_step + (scale.last_step - scale.first_step) * share
        loss = scale.min_loss + (scale.max_loss - scale.min_loss) * share
        x, y = scale.position(step, loss)
        ElementTree.SubElement(
            svg, "line", x1=str(LEFT), x2=str(WIDTH - RIGHT), y1=str(y), y2=str(y), stroke=GRID_COLOR
        )
        _add_text(svg, LEFT - 8, y + 4, f"{loss:.3g}", LABEL_COLOR, anchor="end")
        _add_text(svg, x, HEIGHT - BOTTOM + 18, f"{step:.0f}", LABEL_COLOR, anchor="middle")


def _add_line(svg: ElementTree.Element, points: Sequence[tuple[float, float]], style: LineStyle) -> None:
    line = {"fill": "none", "stroke": style.color, "stroke-width": str(style.width)}
    ElementTree.SubElement(svg, "polyline", line, points=" ".join(f"{x},{y}" for x, y in points))
    for x, y in points:
        ElementTree.SubElement(svg, "circle", cx=str(x), cy=str(y), r=str(style.point_radius), fill=style.color)


def _add_text(svg: ElementTree.Element, x: float, y: float, text: str, color: str, anchor: str = "start") -> None:
    element = ElementTree.SubElement(svg, "text", {"text-anchor": anchor}, x=str(x), y=str(y), fill=color)
    element.text = text
