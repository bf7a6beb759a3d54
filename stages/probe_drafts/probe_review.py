"""Review of a probe file: what a person should correct before models are judged by it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from formats.probe_file import Probe, ProbeRow, read_probe_rows
from measures.contamination import comparison_form, find_in_training, questions_of
from models.errors import UserError
from models.sample import Sample
from texts import translate


@dataclass(frozen=True)
class Remark:
    """A remark on a probe.

    Attributes:
        location: file and line of the probe.
        text: in the terminal's language, except for error messages.
        is_error: whether an evaluation would refuse the file.
    """

    location: str
    text: str
    is_error: bool = False


def review_probes(
    source: Path, training: Sequence[Sample], roundtrip: Callable[[str], str] | None = None
) -> tuple[list[Probe], list[Remark]]:
    """Return the readable probes of a file or folder, and the remarks on all of them, errors first.

    Args:
        training: samples for training.
        roundtrip: encodes and decodes a text by the base's tokenizer; None if there is no tokenizer yet.

    Raises:
        UserError: a file cannot be read.
    """
    rows = list(read_probe_rows(source))
    probes = [probe for row in rows for probe in row.wordings]
    remarks = [
        *_find_faults(rows, roundtrip),
        *_find_trivial(rows),
        *_find_repeated(probes),
        *_find_seen(probes, training),
    ]
    return probes, sorted(remarks, key=lambda remark: not remark.is_error)


def _find_faults(rows: Sequence[ProbeRow], roundtrip: Callable[[str], str] | None) -> Iterator[Remark]:
    for row in rows:
        if row.fault:
            yield Remark(row.location, row.fault, is_error=True)
        elif roundtrip:
            try:
                row.wordings[0].roundtrip_text(roundtrip)
            except UserError as error:
                yield Remark(row.location, str(error).removesuffix("."), is_error=True)


def _find_trivial(rows: Sequence[ProbeRow]) -> Iterator[Remark]:
    for row in rows:
        passing = [probe for probe in row.wordings if probe.expectation.is_met_by(probe.question)]
        if passing and not row.fault:
            yield Remark(row.location, translate("an answer that repeats the question meets the expectation"))


def _find_repeated(probes: Sequence[Probe]) -> Iterator[Remark]:
    first_by_form: dict[tuple[str, ...], Probe] = {}
    for probe in probes:
        form = tuple(comparison_form(message.content) for message in probe.messages[:-1])
        first = first_by_form.setdefault(form, probe)
        if first is not probe:
            yield Remark(
                probe.location,
                translate(
                    "the question {question} is also asked at {location}",
                    question=repr(probe.question),
                    location=first.location,
                ),
            )


def _find_seen(probes: Sequence[Probe], training: Sequence[Sample]) -> Iterator[Remark]:
    asked = [(question, sample) for sample in training for question in questions_of(sample.messages)]
    matches = find_in_training([probe.question for probe in probes], (question for question, _ in asked))
    for index, match in sorted(matches.items()):
        question, sample = asked[match.position]
        yield Remark(
            probes[index].location,
            translate(
                "the question {question} stands in training row {location} ({similarity:.0%}): {trained}",
                question=repr(probes[index].question),
                location=f"{sample.file}:{sample.line}",
                similarity=match.similarity,
                trained=repr(question),
            ),
        )
