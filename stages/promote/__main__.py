"""``python -m stages.promote``: see the package's docstring."""

import argparse
from dataclasses import asdict
from pathlib import Path

from formats import params_schema
from measures import metrics
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, read_jsonl, write_json, write_text
from stages.promote.promotion_rules import Decision, Evidence, Guards, decide

TITLE = {True: "promoted · 晋级", False: "not promoted · 未晋级"}


def evidence(name: str, predictions: Path) -> Evidence:
    return Evidence(name, read_jsonl(predictions / "eval.jsonl"), read_json(predictions / metrics.FILE))


def times(path: Path) -> tuple[float, float]:
    """Seconds of an answer: the champion's, the challenger's."""
    seconds = read_json(path)["seconds_an_answer"]
    return seconds["champion"], seconds["challenger"]


def asked(predictions: Path) -> list[tuple]:
    """What a model answered: which rows, general conversations, and wordings of probes."""
    rows = (row for kind in ("eval", "general", "probes") for row in read_jsonl(predictions / f"{kind}.jsonl"))
    try:
        return [(row["id"], row.get("wording"), row["messages"][-1]["content"]) for row in rows]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(
            f"{predictions} holds rows that are no answers; run `dvc repro -f` to evaluate again."
        ) from None


def markdown(decision: Decision, champion: Evidence, challenger: Evidence) -> str:
    rows = [f"| {'✓' if each['met'] else '✗'} {each['condition']} | {each['found']} |" for each in decision.conditions]
    return "\n".join(
        [
            f"# {challenger.name}: {TITLE[decision.promote]}",
            "",
            f"Challenger · 挑战者: {challenger.name}　Champion · 擂主: {champion.name}",
            "",
            "| condition · 条件 | found · 结果 |",
            "|---|---|",
            *rows,
            "",
        ]
    )


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Decide whether a challenger becomes the champion.")
    for side in ("champion", "challenger"):
        parser.add_argument(f"--{side}", required=True, help="what to call it")
        parser.add_argument(f"--{side}-predictions", type=Path, required=True)
    parser.add_argument("--base-predictions", type=Path, required=True, help="what has been forgotten, it still knows")
    parser.add_argument("--times", type=Path, required=True, help="what stages.promote.latency wrote of both")
    parser.add_argument("--decision", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, required=True)
    arguments, knobs = parser.parse_args(), params_schema.load().promote
    champion = evidence(arguments.champion, arguments.champion_predictions)
    challenger = evidence(arguments.challenger, arguments.challenger_predictions)
    if not challenger.rows:
        raise UserError("There are no evaluation rows, so nothing could be better; raise validate.eval_share.")
    if asked(arguments.champion_predictions) != asked(arguments.challenger_predictions):
        raise UserError(
            f"{champion.name} and {challenger.name} were evaluated on different rows; run `dvc repro`, then promote."
        )
    base_figures = read_json(arguments.base_predictions / metrics.FILE)
    metrics.refuse_other_versions({"base": base_figures} | {side.name: side.figures for side in (champion, challenger)})
    try:
        base = base_figures["general"]["loss"]
        guards = Guards(**knobs.guards.model_dump())
        decision = decide(champion, challenger, base, times(arguments.times), knobs.metric, knobs.margin, guards)
    except (KeyError, TypeError) as error:
        raise UserError(f"The answers have no {error}: run `dvc repro` to evaluate again, then promote.") from None
    names = {"champion": champion.name, "challenger": challenger.name}
    write_text(arguments.markdown, markdown(decision, champion, challenger))
    write_json(arguments.decision, names | asdict(decision))


if __name__ == "__main__":
    main()
