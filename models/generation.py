"""Generation of answers, in batches or streamed; used by evaluation and chat."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from models.decoding import Decoder
from models.prompt import encode_prompt, encode_text
from models.sample import Message

_AMBIGUOUS_PUNCTUATION = ",!:;?"  # ChatGLM-6B's answers have these in Chinese if the next character is


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: decoded and cleaned.
        tokens: number of generated tokens, without the one that ends the answer.
        seconds: wall-clock time of its batch, divided by the number of answers in the batch.
    """

    text: str
    tokens: int
    seconds: float


def greedy_config(model, max_new_tokens: int) -> GenerationConfig:
    """Return the configuration of greedy decoding until a token that ends the answer."""
    config = model.config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
    )


def sampling_config(model, max_new_tokens: int, temperature: float = 0.95, top_p: float = 0.7) -> GenerationConfig:
    """Return the configuration of sampling, with the defaults of the published ``chat()``."""
    config = greedy_config(model, max_new_tokens)
    config.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    return config


# Batches -------------------------------------------------------------------------------------------


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
    """Generate answers in left-padded batches of similar length.

    Args:
        conversations: each ends with a question.
        decoder: of the model with its current adapter; by default transformers' own loop.
        seed: of sampling, set before every batch, so that answers do not depend on earlier batches; None for greedy
            decoding.
        force_full_length: generate ``max_new_tokens`` for every answer, to measure speed.

    Yields:
        Index of the conversation and its answer, batch by batch.
    """
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), batch_size):
        indices = by_length[start : start + batch_size]
        batch = pad_left([prompts[index] for index in indices], tokenizer.pad_token_id, model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            config = (greedy_config if seed is None else sampling_config)(model, max_new_tokens)
            config.min_new_tokens = max_new_tokens if force_full_length else None
            output = model.generate(**batch, generation_config=config, custom_generate=decoder)
        seconds = (time.perf_counter() - started) / len(indices)
        for index, ids in zip(indices, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            yield index, build_answer(model, tokenizer, ids, seconds)


def pad_left(prompts: Sequence[list[int]], pad_token_id: int, device) -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of a left-padded batch, (B, longest prompt) each."""
    length = max(map(len, prompts))
    padding = [length - len(prompt) for prompt in prompts]
    rows = [[pad_token_id] * size + prompt for size, prompt in zip(padding, prompts, strict=True)]
    masks = [[0] * size + [1] * len(prompt) for size, prompt in zip(padding, prompts, strict=True)]
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(masks, device=device),
    }


def build_answer(model, tokenizer, ids: list[int], seconds: float) -> Answer:
    """Return the answer of generated ids, which are cut at the first token that ends an answer."""
    ends = model.config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    ids = ids[: next((index for index, token_id in enumerate(ids) if token_id in ends), len(ids))]
    return Answer(decode_answer(tokenizer, ids), len(ids), seconds)


def decode_answer(tokenizer, ids: list[int]) -> str:
    """Return the cleaned text of an answer's ids, without the token that ends it."""
    return tokenizer.family.clean_answer(tokenizer.decode(ids, skip_special_tokens=True))


def roundtrip_text(tokenizer, text: str) -> str:
    """Encode a text and decode it like an answer: the tokenizer normalizes it and drops unknown characters."""
    return decode_answer(tokenizer, encode_text(tokenizer, text))


# Streaming -----------------------------------------------------------------------------------------


class _StopRequest(StoppingCriteria):
    """Stops generation once ``event`` is set."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class AnswerStream:
    """Iterator over the text pieces of an answer while it is generated. Closing the iterator stops generation.

    Args:
        messages: conversation that ends with a question.
        generation: :func:`greedy_config` or :func:`sampling_config`.
        decoder: of the model with its current adapter; by default transformers' own loop.

    Attributes:
        answer: the whole answer, after the iteration.
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
        self.stop = _StopRequest()

    def __iter__(self) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        outcome: dict = {}
        started = time.perf_counter()
        thread = threading.Thread(target=self._generate, args=(streamer, outcome), daemon=True)
        thread.start()
        received, yielded = "", 0
        try:
            for piece in streamer:
                received += piece
                text = self.tokenizer.family.clean_answer(received)
                stable = len(text) - (text[-1:] in _AMBIGUOUS_PUNCTUATION and text != "")
                if stable > yielded:
                    yield text[yielded:stable]
                    yielded = stable
        finally:
            self.stop.event.set()
            thread.join()
        if "error" in outcome:
            raise outcome["error"]
        ids = outcome["ids"][0, self.prompt.shape[1] :].tolist()
        self.answer = build_answer(self.model, self.tokenizer, ids, time.perf_counter() - started)
        if self.answer.text[yielded:]:
            yield self.answer.text[yielded:]

    def _generate(self, streamer: TextIteratorStreamer, outcome: dict) -> None:
        """Generate in a thread; puts ``ids`` or ``error`` into ``outcome``."""
        try:
            with torch.inference_mode():
                outcome["ids"] = self.model.generate(
                    input_ids=self.prompt,
                    streamer=streamer,
                    generation_config=self.generation,
                    # generate() does not pass its streamer to a custom loop.
                    custom_generate=self.decoder and partial(self.decoder, streamer=streamer),
                    stopping_criteria=[self.stop],
                )
        except Exception as error:  # raised in the reading thread, which would otherwise wait forever
            outcome["error"] = error
            # Not end(), which decodes pending ids: decoding may be what failed.
            streamer.on_finalized_text("", stream_end=True)
