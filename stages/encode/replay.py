"""Replay: general conversations among the training rows, against forgetting."""

import logging
import random
from collections.abc import Sequence

from measures.ngrams import has_near_duplicate, join_dialogue
from models.errors import UserError
from models.sample import Sample
from models.text_normalization import normalize_text

log = logging.getLogger("tuneline.encode")
# Fixed: does not depend on params.yaml. It is the lowest similarity that validate.checks.no_near_duplicate accepts, so
# the exclusion is at least as strict as that check.
REPLAY_EXCLUSION_SIMILARITY = 0.7


def draw_replay_samples(
    task: dict[str, list[Sample]], general: Sequence[Sample], share: float, seed: int, held_out: Sequence[Sample] = ()
) -> list[Sample]:
    """Draw general samples that make up a share of the training rows, each about equally often.

    Samples of the task and samples similar to evaluation rows are left out, so that no held-out row leaks.

    Args:
        task: samples of the task by split.
        general: samples to draw from.
        share: of the general samples among all training rows, from 0 to 0.9.
        seed: of the draw.
        held_out: general samples for evaluation and test.

    Raises:
        UserError: no sample is left to draw from.
    """
    number = round(len(task["train"]) * share / (1 - share))
    if not number:
        return []
    task_ids = {sample.id for samples in task.values() for sample in samples}
    other_samples = [sample for sample in general if sample.id not in task_ids]
    candidates = exclude_similar_to_evaluated(other_samples, [*task["eval"], *task["test"], *held_out])
    if not candidates:
        raise UserError(
            "train.replay needs general conversations, but every row of ingest.general belongs to the task or is "
            "similar to an evaluation row. Add others to ingest.general, or set train.replay to 0."
        )
    if excluded := len(other_samples) - len(candidates):
        log.info("encode: %d general conversations are not replayed, because evaluation rows are similar", excluded)
    rng, drawn = random.Random(seed), []
    while len(drawn) < number:
        drawn += rng.sample(candidates, min(len(candidates), number - len(drawn)))
    return drawn


def exclude_similar_to_evaluated(samples: Sequence[Sample], evaluated: Sequence[Sample]) -> list[Sample]:
    """Return the samples that are no near-duplicate of an evaluated sample and share no last question with its context.

    A question counts with all messages before it. A sample that is the start of an evaluated conversation is excluded
    too.
    """
    # a plain text has one message and no question
    evaluated_questions = {key for sample in evaluated for key in prefix_keys(sample)[-2:-1]}
    evaluated_prefixes = {key for sample in evaluated for key in prefix_keys(sample)}
    texts, evaluated_texts = (
        [normalize_text(join_dialogue(sample.messages)) for sample in part] for part in (samples, evaluated)
    )
    is_near_duplicate = has_near_duplicate(texts, evaluated_texts, REPLAY_EXCLUSION_SIMILARITY)
    return [
        sample
        for sample, is_similar in zip(samples, is_near_duplicate, strict=True)
        if not is_similar
        and evaluated_questions.isdisjoint(keys := prefix_keys(sample))
        and keys[-1] not in evaluated_prefixes
    ]


def prefix_keys(sample: Sample) -> list[int]:
    """Return a hash of the first message, of the first two messages, and so on.

    System messages, whitespace and punctuation forms are ignored. The hashes are valid within one process.
    """
    keys, key = [], 0
    for message in sample.messages:
        if message.role != "system":
            key = hash((key, message.role, normalize_text(message.content)))
            keys.append(key)
    return keys
