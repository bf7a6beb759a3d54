"""What is kept of each champion, so that guards compare later challengers with the best one so far."""

from collections.abc import Mapping, Sequence

from models.errors import UserError
from models.storage import sha256_of_json
from stages.promote.promotion_rules import Reference


def describe_model(figures: Mapping, general: Sequence[dict], probes: Sequence[dict], latency: float) -> dict:
    """Return the record of a promoted model for ``reports/promotion.json``.

    Args:
        figures: its metrics.
        general, probes: its rows; figures over other rows are not comparable.
        latency: time per answer, as a multiple of the base's.
    """
    rates = ((figures.get("probes") or {}).get("rates") or {}).get("all")
    return {
        "loss": figures["general"]["loss"],
        "rouge": figures["general"]["rouge-l"],
        "general_rows": _hash_rows(figures, general),
        "probes": rates and rates["rate"],
        "probe_rows": _hash_rows(figures, probes),
        "latency": latency,
        "base": _base_identity(figures),
    }


def read_reference(name: str, record: Mapping, current: Mapping) -> Reference:
    """Return an earlier champion as a reference, with the figures that are comparable.

    Args:
        record: of the earlier champion; it may lack keys, as older versions wrote it.
        current: record of the challenger.

    Raises:
        UserError: a figure is not a number.
    """

    def figure(key: str, condition: str) -> float | None:
        value = record.get(key)
        if value is None or record.get(condition) != current[condition]:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"The record of champion {name} has {key} {value!r}, which is not a number; re-promote it.")
        return value

    return Reference(
        f"champion {name}",
        loss=figure("loss", "general_rows"),
        rouge=figure("rouge", "general_rows"),
        probes=figure("probes", "probe_rows"),
        latency=figure("latency", "base"),
    )


def _hash_rows(figures: Mapping, rows: Sequence[dict]) -> str:
    questions = [[row["id"], row.get("wording"), row["messages"], row.get("reference")] for row in rows]
    return sha256_of_json([_base_identity(figures), figures.get("metrics_version"), questions])


def _base_identity(figures: Mapping) -> str | None:
    return (figures.get("of") or {}).get("base_identity")
