"""``python -m stages.compare``: see the package's docstring."""

import argparse
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.storage import write_json, write_text
from stages.compare.comparison_page import write_page
from stages.compare.markdown import write_markdown, write_summary
from stages.compare.model_columns import curves, gather
from stages.compare.text_quality import judge


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Set base and adapters side by side.")
    for name in ("predictions", "weights", "page", "markdown", "html", "summary", "curves"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="others than the base and all adapters")
    parser.add_argument("--common", action="store_true", help="leave out rows that not all of them answered")
    arguments = parser.parse_args()
    knobs = params_schema.load()

    names = arguments.models or ["base", *knobs.adapters]
    models = gather(names, arguments.predictions, arguments.weights, arguments.common)
    write_json(arguments.curves, curves(models))
    verdicts = [verdict for model in models for verdict in judge(model)]
    write_text(arguments.markdown, write_markdown(models, verdicts))
    write_text(arguments.html, write_page(models, verdicts, arguments.page.read_text(encoding="utf-8")))
    write_text(arguments.summary, write_summary(models, knobs.compare.answer_characters))


if __name__ == "__main__":
    main()
