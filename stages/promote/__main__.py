"""``python -m stages.promote``: see the package's docstring."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from formats import params_schema
from measures import metrics
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, read_jsonl, write_json
from stages.promote.past_champions import describe_model, read_reference
from stages.promote.promotion_rules import Evidence, GainRule, Guards, Reference, decide


def read_evidence(name: str, predictions: Path) -> Evidence:
    """Read a model's evaluation rows and metrics."""
    return Evidence(name, read_jsonl(predictions / "test.jsonl"), read_json(predictions / metrics.METRICS_FILE))


def read_latencies(path: Path) -> dict[str, float]:
    """Read the time per answer of ``champion`` and ``challenger``, as multiples of the base's."""
    seconds = read_json(path)["seconds_an_answer"]
    return {name: value / seconds["base"] for name, value in seconds.items() if name != "base"}


def read_record(evidence: Evidence, predictions: Path, latency: float) -> dict:
    """Read what is kept of a model, see :mod:`stages.promote.past_champions`."""
    rows = (read_jsonl(predictions / f"{kind}.jsonl") for kind in ("general", "probes"))
    return describe_model(evidence.figures, *rows, latency)


def collect_references(
    records: dict[str, dict], earlier: Mapping[str, Mapping], challenger: Mapping
) -> list[Reference]:
    """Return the models that guards compare with.

    Args:
        records: of the base and, if there is one, of the champion, by name in the report.
        earlier: records of the promoted versions, by version.
        challenger: its record.
    """
    current = [
        Reference(name, record["loss"], record["rouge"], record["probes"], record["latency"])
        for name, record in records.items()
    ]
    return current + [read_reference(version, record, challenger) for version, record in earlier.items()]


def read_questions(predictions: Path) -> list[tuple]:
    """Read the id, wording and question of every row that a model was evaluated on.

    Raises:
        UserError: a row is not one of stage evaluate.
    """
    rows = [row for kind in ("test", "general", "probes") for row in read_jsonl(predictions / f"{kind}.jsonl")]
    try:
        # A plain text has no question.
        questions = [[message["content"] for message in row["messages"][-1:]] for row in rows]
        return [(row["id"], row.get("wording"), question) for row, question in zip(rows, questions, strict=True)]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(
            f"{predictions} has rows that stage evaluate did not write; run `dvc repro -f` to evaluate again."
        ) from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decide whether a challenger becomes the champion.")
    for role in ("champion", "challenger"):
        parser.add_argument(f"--{role}", required=True, help="its name in reports")
        parser.add_argument(f"--{role}-predictions", type=Path, required=True)
    parser.add_argument("--base-predictions", type=Path, required=True, help="of the base, for the guards")
    parser.add_argument("--records", type=Path, required=True, help="JSON file of the champions before, by version")
    parser.add_argument("--times", type=Path, required=True, help="file that stages.promote.latency wrote")
    parser.add_argument("--decision", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def build_rule(params: params_schema.Params, has_champion: bool) -> GainRule:
    """Return the rule for the gain of one of the adapters in params.yaml.

    A retraining tries all adapters one after another, the best first. The challenger then is the best of all candidates
    of all adapters.
    """
    return GainRule(
        params.promote.metric,
        params.promote.margin,
        params.promote.seed_spread,
        candidates=sum(adapter.chosen_from for adapter in params.adapters.values()),
        challengers=len(params.adapters),
        is_opponent_trained=has_champion,
    )


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    champion = read_evidence(arguments.champion, arguments.champion_predictions)
    challenger = read_evidence(arguments.challenger, arguments.challenger_predictions)
    if not challenger.rows:
        raise UserError("There are no test rows to measure a gain on; raise validate.test_share in params.yaml.")
    if not metrics.rows_with(params.promote.metric, challenger.rows):
        raise UserError(f"promote.metric: no test row has {params.promote.metric}; set it to loss in params.yaml.")
    if read_questions(arguments.champion_predictions) != read_questions(arguments.challenger_predictions):
        raise UserError(
            f"{champion.name} and {challenger.name} were evaluated on different rows; run `dvc repro`, then promote."
        )
    base = read_evidence("base", arguments.base_predictions)
    metrics.require_same_version({model.name: model.figures for model in (base, champion, challenger)})
    try:
        latencies = read_latencies(arguments.times)
        record = read_record(challenger, arguments.challenger_predictions, latencies["challenger"])
        records = {"base": read_record(base, arguments.base_predictions, 1.0)}
        if has_champion := arguments.champion_predictions != arguments.base_predictions:
            predictions = arguments.champion_predictions
            records[champion.name] = read_record(champion, predictions, latencies["champion"])
        references = collect_references(records, read_json(arguments.records), record)
        rule = build_rule(params, has_champion)
        guards = Guards(**params.promote.guards.model_dump())
        decision = decide(champion, challenger, references, latencies["challenger"], rule, guards)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The metrics or answers lack {error}; run `dvc repro` to evaluate again, then promote."
        ) from None
    names = {"champion": champion.name, "challenger": challenger.name}
    started_from = (challenger.figures.get("training") or {}).get("started_from")
    write_json(arguments.decision, names | {"started_from": started_from} | asdict(decision) | {"record": record})


if __name__ == "__main__":
    main()
