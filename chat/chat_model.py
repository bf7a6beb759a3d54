"""The model of a chat: the base model, an adapter on it, or the champion. It can be switched during the chat."""

import logging
from collections.abc import Sequence
from pathlib import Path

from models import adapter_files, base_model, model_loading
from models.errors import UserError
from models.families import family_of
from models.manifest import MANIFEST, check_base_matches, read_verified_manifest
from models.sample import Message
from texts import translate

log = logging.getLogger("tuneline.chat")

BASE, CHAMPION, IMPORTED = "base", "champion", "imported"


class ChatModel:
    """A base model with a tokenizer and an adapter that can be switched.

    Args:
        weights: folder of the base model and the adapters; ``champion`` and ``imported`` are next to it.
        name: ``base``, ``champion``, an adapter's name, or None for the champion if there is one, else the base.
        dtype: of the base model's weights; ``auto`` for the dtype of the checkpoint, or the adapter's training dtype.
        max_new_tokens: limit for the length of an answer.
        sample: sample answers instead of greedy decoding.

    Raises:
        UserError: the base model or the adapter is missing, they do not belong together, or ``max_new_tokens`` leaves
            no room for a prompt.
    """

    def __init__(self, weights: Path, name: str | None, dtype: str, max_new_tokens: int, sample: bool):
        if not (weights / BASE / base_model.RECORD).is_file():
            raise UserError(f"There is no base model in {weights / BASE}; run `make demo` or `dvc repro base`.")
        self.weights, self.dtype, self.max_new_tokens, self.sample = weights, dtype, max_new_tokens, sample
        self.base = base_model.read_record(weights / BASE)
        self.tokenizer = model_loading.load_tokenizer(self.base)
        self.adapter, self.model = "", None
        self.switch(name or self.default_adapter())
        if self.max_prompt_tokens() < 1:
            raise UserError(
                f"--max-new-tokens must be less than the model's {self.model.config.max_position_embeddings} tokens."
            )

    def default_adapter(self) -> str:
        """Return ``champion`` if there is one and it belongs to this base model, else ``base``."""
        if CHAMPION not in self.names():
            return BASE
        try:
            check_base_matches(read_verified_manifest(self._folder(CHAMPION)), self.base, self._folder(CHAMPION))
            return CHAMPION
        except UserError as error:
            log.warning("%s %s", error, translate("The base model answers instead."))
            return BASE

    @property
    def title(self) -> str:
        """The model's name before its answers."""
        return family_of(self.base).title(self.base)

    @property
    def name(self) -> str:
        return self.base.name if self.adapter == BASE else f"{self.base.name} + {self.adapter}"

    def names(self) -> list[str]:
        """Return the names that :meth:`switch` accepts."""
        folders = (self.weights, self.weights.parent / IMPORTED)
        adapters = sorted(path.parent.name for folder in folders for path in folder.glob(f"*/{MANIFEST}"))
        has_champion = (self._folder(CHAMPION) / MANIFEST).is_file()
        return [BASE, *([CHAMPION] if has_champion else []), *adapters]

    def _folder(self, name: str) -> Path:
        if name == CHAMPION:
            return self.weights.parent / CHAMPION
        trained = self.weights / name
        return trained if trained.is_dir() else self.weights.parent / IMPORTED / name

    def switch(self, name: str) -> None:
        """Load another adapter. If that fails, the current one stays.

        Raises:
            UserError: there is no such adapter, it is damaged, or it belongs to another base model.
        """
        if name not in self.names():
            raise UserError(f"There is no adapter {name!r} in {self.weights}; there are: {', '.join(self.names())}.")
        if name != BASE:
            check_base_matches(read_verified_manifest(self._folder(name)), self.base, self._folder(name))
        self.model = None  # freed first, as memory may hold one model only
        try:
            self.model = self._load(name)
            self.adapter = name
        except UserError:
            self.model = self._load(self.adapter) if self.adapter else None
            raise
        finally:
            self.decoder = family_of(self.base).create_decoder()

    def _load(self, name: str):
        if name == BASE:
            return model_loading.load_model(self.base, self.dtype)
        dtype = None if self.dtype == "auto" else self.dtype
        return adapter_files.load_adapter(self._folder(name), self.base, dtype=dtype)

    def stream_answer(self, messages: Sequence[Message], force_sampling: bool = False):
        """Return a :class:`models.generation.AnswerStream` of the answer.

        Args:
            messages: conversation that ends with the question.
            force_sampling: sample this answer even if the chat decodes greedily.
        """
        from models.generation import AnswerStream, greedy_config, sampling_config

        build_config = sampling_config if self.sample or force_sampling else greedy_config
        generation = build_config(self.model, self.max_new_tokens)
        return AnswerStream(self.model, self.tokenizer, messages, generation, self.decoder)

    def max_prompt_tokens(self) -> int:
        """Return the longest prompt that leaves room for an answer."""
        return self.model.config.max_position_embeddings - self.max_new_tokens

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt of a conversation leaves room for an answer."""
        from models.prompt import encode_prompt

        return len(encode_prompt(self.tokenizer, messages)) <= self.max_prompt_tokens()
