"""Paths that several stages share, and calls of stages evaluate and compare outside the DAG."""

from pathlib import Path

from models.errors import UserError
from pipelines.processes import run_module
from texts import terminal_language

WEIGHTS, PREDICTIONS = Path("models/weights"), Path("data/predictions")
TOKENIZER = WEIGHTS / "tokenizer"
PAGE = Path("reports/page.html")
GENERAL, CHECKED, ENCODED = Path("data/general/checked"), Path("data/checked"), Path("data/encoded")


def run_evaluate(name: str, weights: Path, out: Path, *options: str) -> int:
    """Run stage evaluate on a model and return its exit code; the answers go to ``out/predictions/NAME``."""
    paths = {
        "base": WEIGHTS / "base",
        "weights": weights,
        "checked": CHECKED,
        "encoded": ENCODED,
        "general": GENERAL,
        "predictions": out / "predictions" / name,
        "metrics": out / "metrics" / f"{name}.json",
        "kept": out / "answers",
    }
    return run_module("stages.evaluate", "--model", name, *path_options(paths), *options)


def run_compare(names: list[str], folder: Path, page: Path, *options: str) -> str:
    """Run stage compare on models, and return the summary in the terminal's language.

    Args:
        folder: has ``predictions/NAME`` and ``weights/NAME/manifest.json`` of each model.
        page: HTML file to write; the Markdown files go next to it.

    Raises:
        UserError: the models cannot be compared; the stage has printed the reason.
    """
    summaries = {"en": folder / "summary.txt", "zh": folder / "summary.zh.txt"}
    paths = {name: folder / name for name in ("predictions", "weights")}
    paths |= {"page": PAGE, "html": page, "curves": folder / "curves.json"}
    paths |= {"markdown": page.with_suffix(".md"), "markdown-zh": page.with_suffix(".zh.md")}
    paths |= {"summary": summaries["en"], "summary-zh": summaries["zh"]}
    if run_module("stages.compare", *path_options(paths), "--models", *names, *options) != 0:
        raise UserError("The models cannot be compared; the reason is in the output above.")
    return summaries[terminal_language()].read_text(encoding="utf-8")


def require_html(page: Path, option: str = "--out") -> None:
    """Raise UserError if the path of an option does not end with .html."""
    if page.suffix != ".html":
        raise UserError(f"{option}: {page} must end with .html.")


def path_options(paths: dict[str, Path]) -> list[str]:
    """Return command-line options ``--NAME PATH``."""
    return [part for option, path in paths.items() for part in (f"--{option}", str(path))]
