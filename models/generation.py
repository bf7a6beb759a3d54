"""Answers of a model, whole or as they come: what evaluate and chat share."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from models.decoding import Decoder
from models.prompt import clean_answer, encode_prompt, encode_text
from models.sample import Message

_UNDECIDED = ",!:;?"  # the next character may still make these Chinese punctuation


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: cleaned.
        tokens: generated, ``<eop>`` not counted.
        seconds: of its batch, divided by the batch's answers.
    """

    text: str
    tokens: int
    seconds: float


def greedy_config(model, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding until ``<eop>``."""
    config = model.config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
    )


def sampling_config(model, max_new_tokens: int, temperature: float = 0.95, top_p: float = 0.7) -> GenerationConfig:
    """Sampling with the defaults of the published ``chat()``."""
    config = greedy_config(model, max_new_tokens)
    config.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    return config


def generate_answers(
    model,
    tokenizer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int,
    decoder: Decoder | None = None,
    seed: int | None = None,
    force_full_length: bool = False,
) -> Iterator[tuple[int, Answer]]:
    """Answers in left-padded batches of similar length: greedy, or sampled where there is a seed.

    Args:
        conversations: each ending with the question to answer.
        seed: every batch begins with it, so that what is asked before changes no answer.
        decoder: for the model as it is now; by default transformers' own loop.
        force_full_length: every answer has ``max_new_tokens``, wherever the model would end it: for its speed.

    Yields:
        Index of the conversation and its answer, batch by batch.
    """
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [prompts[index] for index in chosen]}, return_tensors="pt")
        batch = batch.to(model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            generation = (greedy_config if seed is None else sampling_config)(model, max_new_tokens)
            generation.min_new_tokens = max_new_tokens if force_full_length else None
            how = {"generation_config": generation, "custom_generate": decoder}
            generated = model.generate(**batch, **how)
        seconds = (time.perf_counter() - started) / len(chosen)
        for index, row in zip(chosen, generated[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            yield index, _answer(model, tokenizer, row, seconds)


def _answer(model, tokenizer, ids: list[int], seconds: float) -> Answer:
    end = model.config.eos_token_id
    ids = ids[: ids.index(end)] if end in ids else ids
    return Answer(decode_answer(tokenizer, ids), len(ids), seconds)


def decode_answer(tokenizer, ids: list[int]) -> str:
    """The cleaned text of an answer's ids, without ``<eop>``."""
    return clean_answer(tokenizer.decode(ids, skip_special_tokens=True))


def roundtrip_text(tokenizer, text: str) -> str:
    """Decode a text's own ids as an answer is decoded: the tokenizer normalizes it and drops unknown characters."""
    return decode_answer(tokenizer, encode_text(tokenizer, text))


class _Stop(StoppingCriteria):
    """Ends an answer that nobody reads on."""

    def __init__(self):
        self.wanted = threading.Event()

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.wanted.is_set(), device=input_ids.device)


class AnswerStream:
    """An answer as it comes: iterate for the pieces; afterwards ``answer`` is the whole. Whoever leaves in the middle
    stops it.

    Args:
        messages: ending with the question to answer.
        generation: :func:`greedy_config` or :func:`sampling_config`.
        decoder: for the model as it is now; by default transformers' own loop.
    """

    def __init__(
        self,
        model,
        tokenizer,
        messages: Sequence[Message],
        generation: GenerationConfig,
        decoder: Decoder | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.generation, self.decoder = generation, decoder
        self.prompt = torch.tensor([encode_prompt(tokenizer, messages)], device=model.device)
        self.answer: Answer | None = None
        self.stop = _Stop()

    def __iter__(self) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        outcome: dict = {}
        started = time.perf_counter()
        worker = threading.Thread(target=self._generate, args=(streamer, outcome), daemon=True)
        worker.start()
        received, shown = "", 0
        try:
            for piece in streamer:
                received += piece
                text = clean_answer(received)
                stable = len(text) - (text[-1:] in _UNDECIDED and text != "")
                if stable > shown:
                    yield text[shown:stable]
                    shown = stable
        finally:
            self.stop.wanted.set()
            worker.join()
        if "error" in outcome:
            raise outcome["error"]
        ids = outcome["ids"][0, self.prompt.shape[1] :].tolist()
        self.answer = _answer(self.model, self.tokenizer, ids, time.perf_counter() - started)
        if self.answer.text[shown:]:
            yield self.answer.text[shown:]

    def _generate(self, streamer: TextIteratorStreamer, outcome: dict) -> None:
        try:
            # generate() hands no streamer on to a decoder.
            decoder = self.decoder and partial(self.decoder, streamer=streamer)
            how = {"generation_config": self.generation, "custom_generate": decoder, "stopping_criteria": [self.stop]}
            with torch.inference_mode():
                outcome["ids"] = self.model.generate(input_ids=self.prompt, streamer=streamer, **how)
        except Exception as error:  # handed to the reader, who would otherwise wait for ever
            outcome["error"] = error
            streamer.on_finalized_text("", stream_end=True)  # end() would decode what may be the reason
