"""The losses of a training as a picture that stands alone: SVG for Prefect's UI, which draws nothing itself."""

import base64
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 44
# Colour, width of the line, radius of its points, name: of training there are many, of evaluation few.
LINES = {"train": ("#9aa5b1", 1.2, 1.2, "training · 训练"), "eval": ("#1f6feb", 2, 3, "evaluation · 评测")}
TICKS = 5


def data_url(title: str, history: Sequence[dict]) -> str:
    """The picture as an address that holds it, for where pictures are given by address."""
    return f"data:image/svg+xml;base64,{base64.b64encode(draw(title, history).encode()).decode()}"


def draw(title: str, history: Sequence[dict]) -> str:
    """Loss against steps.

    Args:
        history: points ``{step, split, loss}``, the split being ``train`` or ``eval``; one or more.
    """
    steps, losses = ([point[key] for point in history] for key in ("step", "loss"))
    (first, last), (low, high) = (_range(values) for values in (steps, losses))

    def at(step: float, loss: float) -> tuple[float, float]:
        across = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    shares = [index / (TICKS - 1) for index in range(TICKS)]
    grid = [_grid_line(at(first, loss)[1], f"{loss:.3g}") for loss in (low + (high - low) * share for share in shares)]
    ticks = [_tick(at(step, low)[0], f"{step:.0f}") for step in (first + (last - first) * share for share in shares)]
    lines = [_line(split, [at(p["step"], p["loss"]) for p in history if p["split"] == split]) for split in LINES]
    names = [
        _text(LEFT + 190 * index, TOP - 10, f"― {name}", colour)
        for index, (colour, *_, name) in enumerate(LINES.values())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="13"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(LEFT, 18, f"{title} · loss · 损失", "#1f2933"),
            *names,
            *grid,
            *ticks,
            *lines,
            _text(LEFT, HEIGHT - 8, "step · 步", "#52606d"),
            "</svg>",
        ]
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid_line(down: float, label: str) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" stroke="#e4e7eb"/>'
    return line + f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end" fill="#52606d">{label}</text>'


def _tick(across: float, label: str) -> str:
    return f'<text x="{across}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#52606d">{label}</text>'


def _line(split: str, places: Sequence[tuple[float, float]]) -> str:
    colour, width, radius, _ = LINES[split]
    points = " ".join(f"{x},{y}" for x, y in places)
    line = f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{points}"/>'
    return line + "".join(f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"/>' for x, y in places)


def _text(across: float, down: float, words: str, colour: str) -> str:
    return f'<text x="{across}" y="{down}" fill="{colour}">{escape(words)}</text>'
