"""What stage evaluate and stage compare are called with, outside the DAG."""

from pathlib import Path

from models.errors import UserError
from pipelines.processes import run_module

WEIGHTS, PREDICTIONS = Path("models/weights"), Path("data/predictions")
PAGE = Path("reports/page.html")
PROBES, GENERAL, CHECKED, ENCODED = (
    Path("data/demo/probes.jsonl"),
    Path("data/general/checked"),
    Path("data/checked"),
    Path("data/encoded"),
)


def evaluate(name: str, weights: Path, out: Path, *options: str) -> int:
    """Ask a model everything; gives the exit code. ``out`` gets ``predictions/NAME``."""
    paths = {
        "base": WEIGHTS / "base",
        "weights": weights,
        "checked": CHECKED,
        "encoded": ENCODED,
        "general": GENERAL,
        "probes": PROBES,
        "predictions": out / "predictions" / name,
        "metrics": out / "metrics" / f"{name}.json",
        "kept": out / "answers",
    }
    return run_module("stages.evaluate", "--model", name, *_options(paths), *options)


def compare(names: list[str], folder: Path, out: Path, *options: str) -> None:
    """Set models side by side whose predictions and weights' manifests lie in a folder.

    Args:
        out: the page; Markdown goes beside it.

    Raises:
        UserError: they cannot be compared; the stage has said why.
    """
    paths = {name: folder / name for name in ("predictions", "weights")}
    paths |= {"page": PAGE, "html": out, "markdown": out.with_suffix(".md")}
    paths |= {"summary": folder / "summary.txt", "curves": folder / "curves.json"}
    if run_module("stages.compare", *_options(paths), "--models", *names, *options) != 0:
        raise UserError("They cannot be compared; the lines above say why.")


def _options(paths: dict[str, Path]) -> list[str]:
    return [part for option, path in paths.items() for part in (f"--{option}", str(path))]
