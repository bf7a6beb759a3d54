"""``python -m stages.compare``: see the package's docstring."""

import argparse
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.storage import write_json, write_text
from stages.compare.comparison_page import render_page
from stages.compare.evaluated_models import load_models, loss_curves
from stages.compare.markdown import render_markdown
from stages.compare.terminal_summary import render_summary
from stages.compare.text_quality import check_text_quality

PATHS = {
    "predictions": "folder with a folder of answers and metrics for each model",
    "weights": "folder with a folder for each adapter, of which the manifests are read",
    "page": "HTML around the content of the page",
    "html": "page to write",
    "markdown": "English Markdown file to write",
    "markdown-zh": "Chinese Markdown file to write",
    "summary": "English summary for the terminal to write",
    "summary-zh": "Chinese summary for the terminal to write",
    "curves": "JSON file of loss curves to write",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare base model and adapters.")
    for name, text in PATHS.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models to compare (default: base, all adapters)")
    parser.add_argument("--common", action="store_true", help="leave out rows that some models did not answer")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    names = arguments.models or ["base", *params.adapters]
    models = load_models(names, arguments.predictions, arguments.weights, arguments.common)
    text_quality = [result for model in models for result in check_text_quality(model)]
    write_json(arguments.curves, loss_curves(models))
    write_text(arguments.html, render_page(models, text_quality, arguments.page.read_text(encoding="utf-8")))
    files = {"en": (arguments.markdown, arguments.summary), "zh": (arguments.markdown_zh, arguments.summary_zh)}
    for language, (markdown, summary) in files.items():
        write_text(markdown, render_markdown(models, text_quality, language))
        write_text(summary, render_summary(models, params.compare.answer_characters, language))


if __name__ == "__main__":
    main()
