"""Whoever answers in the chat: the base, an adapter on it, or the champion; it can be another one at any time."""

import logging
from collections.abc import Sequence
from pathlib import Path

from models import adapter_files, base_model, model_loading
from models.errors import UserError
from models.manifest import MANIFEST, check_base_matches, read_verified_manifest
from models.sample import Message

log = logging.getLogger("tuneline.chat")

BASE, CHAMPION, IMPORTED = "base", "champion", "imported"


class Partner:
    """A loaded model that can be switched.

    Args:
        weights: folder of the base and the adapters; the champion and what was imported lie beside it.
        dtype: that the base is loaded in, ``auto`` for the checkpoint's, or beside an adapter for that of its training.
        name: ``base``, ``champion``, an adapter's key, or None for the champion if there is one, else the base.
        room: tokens of an answer, at most.
        sample: whether answers are sampled, where they are not greedy.

    Raises:
        UserError: the base or the adapter is missing, or they do not belong together.
    """

    def __init__(self, weights: Path, name: str | None, dtype: str, room: int, sample: bool):
        if not (weights / BASE / base_model.RECORD).is_file():
            raise UserError(f"There is no base model in {weights / BASE}; run `make demo` or `dvc repro base`.")
        self.weights, self.dtype, self.room, self.sample = weights, dtype, room, sample
        self.base = base_model.read_record(weights / BASE)
        self.tokenizer = model_loading.load_tokenizer(self.base)
        self.key, self.model = "", None
        self.switch(name or self.first())
        if self.longest_prompt() < 1:
            raise UserError(
                f"--max-new-tokens must be less than the model's {self.model.config.max_sequence_length} tokens."
            )

    def first(self) -> str:
        """The champion, if there is one and it belongs to this base; else the base."""
        if CHAMPION not in self.names():
            return BASE
        try:
            check_base_matches(read_verified_manifest(self._folder(CHAMPION)), self.base, self._folder(CHAMPION))
            return CHAMPION
        except UserError as error:
            log.warning("%s The base answers instead · 改由基座模型回答。", error)
            return BASE

    @property
    def name(self) -> str:
        return self.base.name if self.key == BASE else f"{self.base.name} + {self.key}"

    def names(self) -> list[str]:
        """Who could answer."""
        folders = (self.weights, self.weights.parent / IMPORTED)
        found = sorted(path.parent.name for folder in folders for path in folder.glob(f"*/{MANIFEST}"))
        there = (self._folder(CHAMPION) / MANIFEST).is_file()
        return [BASE, *([CHAMPION] if there else []), *found]

    def _folder(self, name: str) -> Path:
        if name == CHAMPION:
            return self.weights.parent / CHAMPION
        own = self.weights / name
        return own if own.is_dir() else self.weights.parent / IMPORTED / name

    def switch(self, name: str) -> None:
        """Let another one answer. What cannot be loaded is refused while the present one is still there.

        Raises:
            UserError: there is no such adapter, or it does not belong to the base.
        """
        from models.decoding import Decoder

        if name not in self.names():
            raise UserError(f"There is no adapter {name!r} in {self.weights}; there are: {', '.join(self.names())}.")
        if name != BASE:
            check_base_matches(read_verified_manifest(self._folder(name)), self.base, self._folder(name))
        self.model = None  # before the next one is loaded: there may be no memory for two
        try:
            self.model = self._load(name)
            self.key = name
        except UserError:
            self.model = self._load(self.key) if self.key else None
            raise
        finally:
            self.decoder = Decoder()

    def _load(self, name: str):
        if name == BASE:
            return model_loading.load_model(self.base, self.dtype)
        return adapter_files.load_adapter(self._folder(name), self.base, dtype=None if self.dtype == "auto" else self.dtype)

    def answer(self, messages: Sequence[Message], differently: bool = False):
        """A :class:`models.generation.AnswerStream` of the answer; ``differently`` samples one."""
        from models.generation import AnswerStream, greedy_config, sampling_config

        generation = (sampling_config if self.sample or differently else greedy_config)(self.model, self.room)
        return AnswerStream(self.model, self.tokenizer, messages, generation, self.decoder)

    def longest_prompt(self) -> int:
        """Tokens that leave room for an answer."""
        return self.model.config.max_sequence_length - self.room

    def fits(self, messages: Sequence[Message]) -> bool:
        from models.prompt import encode_prompt

        return len(encode_prompt(self.tokenizer, messages)) <= self.longest_prompt()
