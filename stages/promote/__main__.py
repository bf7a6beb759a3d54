"""``python -m stages.promote``: see the package's docstring."""

import argparse
from dataclasses import asdict
from pathlib import Path

from formats import params_schema
from measures import metrics
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, read_jsonl, write_json
from stages.promote.promotion_rules import Evidence, Guards, decide


def read_evidence(name: str, predictions: Path) -> Evidence:
    """Read a model's evaluation rows and metrics."""
    return Evidence(name, read_jsonl(predictions / "eval.jsonl"), read_json(predictions / metrics.METRICS_FILE))


def read_latencies(path: Path) -> tuple[float, float]:
    """Read the time per answer of the champion and of the challenger, in seconds."""
    seconds = read_json(path)["seconds_an_answer"]
    return seconds["champion"], seconds["challenger"]


def read_questions(predictions: Path) -> list[tuple]:
    """Read the id, wording and question of every row that a model answered.

    Raises:
        UserError: a row is not one of stage evaluate.
    """
    rows = (row for kind in ("eval", "general", "probes") for row in read_jsonl(predictions / f"{kind}.jsonl"))
    try:
        return [(row["id"], row.get("wording"), row["messages"][-1]["content"]) for row in rows]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(
            f"{predictions} has rows that stage evaluate did not write; run `dvc repro -f` to evaluate again."
        ) from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decide whether a challenger becomes the champion.")
    for role in ("champion", "challenger"):
        parser.add_argument(f"--{role}", required=True, help="its name in reports")
        parser.add_argument(f"--{role}-predictions", type=Path, required=True)
    parser.add_argument("--base-predictions", type=Path, required=True, help="to measure forgetting against")
    parser.add_argument("--times", type=Path, required=True, help="file that stages.promote.latency wrote")
    parser.add_argument("--decision", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load().promote
    champion = read_evidence(arguments.champion, arguments.champion_predictions)
    challenger = read_evidence(arguments.challenger, arguments.challenger_predictions)
    if not challenger.rows:
        raise UserError("There are no evaluation rows to measure a gain on; raise validate.eval_share in params.yaml.")
    if read_questions(arguments.champion_predictions) != read_questions(arguments.challenger_predictions):
        raise UserError(
            f"{champion.name} and {challenger.name} were evaluated on different rows; run `dvc repro`, then promote."
        )
    base_figures = read_json(arguments.base_predictions / metrics.METRICS_FILE)
    figures = {model.name: model.figures for model in (champion, challenger)}
    metrics.require_same_version({"base": base_figures} | figures)
    try:
        base_loss = base_figures["general"]["loss"]
        seconds, guards = read_latencies(arguments.times), Guards(**params.guards.model_dump())
        decision = decide(champion, challenger, base_loss, seconds, params.metric, params.margin, guards)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The metrics or answers lack {error}; run `dvc repro` to evaluate again, then promote."
        ) from None
    names = {"champion": champion.name, "challenger": challenger.name}
    started_from = (challenger.figures.get("training") or {}).get("started_from")
    write_json(arguments.decision, names | {"started_from": started_from} | asdict(decision))


if __name__ == "__main__":
    main()
