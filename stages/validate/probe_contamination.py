"""Probes that occur in the training rows: an answer to them shows recall, not what the model has learnt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from formats.probe_file import Probe
from measures.contamination import Match, find_in_training, questions_of
from models.sample import Message
from stages.validate.row_decisions import Decision
from stages.validate.row_table import RaggedFile, RowTable
from stages.validate.split import TRAIN
from stages.validate.worker_pool import WorkerPool


@dataclass(frozen=True)
class SeenProbe:
    """A wording of a probe that a user of a training row asks, exactly or nearly.

    Attributes:
        row: index of the training row.
        similarity: of the questions, 1.0 for equal ones.
    """

    question: str
    row: int
    similarity: float


@dataclass(frozen=True)
class _Chunk:
    """The samples of a chunk of rows, and which of them are for training: bool of shape (samples,)."""

    samples: RaggedFile
    is_training: np.ndarray


def find_seen_probes(table: RowTable, decision: Decision, probes: Sequence[Probe], pool: WorkerPool) -> list[SeenProbe]:
    """Return the wordings that occur in the training rows, in the order of the probes."""
    questions = list(dict.fromkeys(probe.question for probe in probes))
    if not questions:
        return []
    is_training = ((decision.splits == TRAIN) & ~decision.is_quarantined)[table.passed]
    ends = np.cumsum([len(file) for file in table.samples])
    chunks = (
        _Chunk(file, is_training[end - len(file) : end]) for file, end in zip(table.samples, ends.tolist(), strict=True)
    )
    best: dict[int, Match] = {}
    first = 0
    for file, matches in zip(table.samples, pool.map_ordered(partial(_search_chunk, questions), chunks), strict=True):
        for index, match in matches.items():
            if index not in best or match.similarity > best[index].similarity:
                best[index] = Match(first + match.position, match.similarity)
        first += len(file)
    rows = table.passed.tolist()
    return [
        SeenProbe(questions[index], rows[match.position], match.similarity) for index, match in sorted(best.items())
    ]


def _search_chunk(questions: Sequence[str], chunk: _Chunk) -> dict[int, Match]:
    """Return the best match of each question; its position is that of the sample in the chunk."""
    positions, asked = [], []
    content = chunk.samples.path.read_bytes()
    for position, (start, end) in enumerate(pairwise(chunk.samples.starts.tolist())):
        if chunk.is_training[position]:
            messages = (Message(**message) for message in json.loads(content[start:end])["messages"])
            texts = questions_of(messages)
            asked += texts
            positions += [position] * len(texts)
    matches = find_in_training(questions, asked)
    return {index: Match(positions[match.position], match.similarity) for index, match in matches.items()}
