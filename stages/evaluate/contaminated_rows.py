"""Probes and general rows that occur in the training rows: what the model may have learnt by heart."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from formats.probe_file import Probe
from formats.raw_row import format_location
from formats.receipt import VerifiedFolder
from measures.contamination import find_in_training, questions_of
from measures.ngrams import join_dialogue
from models.sample import Sample

log = logging.getLogger("tuneline.evaluate")
_MAX_NAMED = 3  # general rows in a log message


def mark_seen_probes(probes: Sequence[Probe], checked: VerifiedFolder) -> list[Probe]:
    """Return the probes with ``is_seen``: whether a user of a training row asks the last question, or nearly.

    Args:
        checked: folder of the task's rows.
    """
    questions = (question for sample in _training_samples(checked) for question in questions_of(sample.messages))
    matches = find_in_training([probe.question for probe in probes], questions)
    return [replace(probe, is_seen=index in matches) for index, probe in enumerate(probes)]


def match_general_samples(samples: Sequence[Sample], checked: VerifiedFolder) -> dict[int, float]:
    """Return index and similarity of the general samples that stand in the task's training rows, and log the first.

    Their loss says nothing about forgetting, since the model is trained on them.

    Args:
        samples: general conversations for evaluation.
        checked: folder of the task's rows.
    """
    dialogues = (join_dialogue(sample.messages) for sample in _training_samples(checked))
    matches = find_in_training([join_dialogue(sample.messages) for sample in samples], dialogues)
    if matches:
        first = [samples[index] for index in list(matches)[:_MAX_NAMED]]
        named = ", ".join(format_location(sample.file, sample.line, sample.number or 0) for sample in first)
        log.warning(
            "%d of %d general rows occur in the training rows and do not measure forgetting (%s%s); replace them",
            len(matches),
            len(samples),
            named,
            ", …" if len(matches) > _MAX_NAMED else "",
        )
    return {index: round(match.similarity, 4) for index, match in matches.items()}


def _training_samples(checked: VerifiedFolder) -> Iterator[Sample]:
    return (Sample.from_json(row) for row in checked.rows("train"))
