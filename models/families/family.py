"""The interface of a family: base models that share tokenization, prompt and architecture.

========================  ==========================================================================
files                     ``tokenizer_files``, ``optional_files``, ``foreign_files``
messages → token ids      ``encode_prompt``, ``encode_sample``, ``encode_rows``; ``prompt_version``
token ids → text          ``clean_answer``
configuration, weights    ``load_config``, ``create_model``, ``check_files``, ``published_bits``,
                          ``convert_weights``, ``save_model``
packed rows               ``packed_columns``
adapters                  ``check_training``, ``linear_names``, ``prefix_shape``, ``import_prefix``, ``export_prefix``
memory                    ``linear_shapes``, ``kept_activations``, ``kept_inputs``
decoding                  ``create_decoder``
========================  ==========================================================================

A new family implements this class and enters :data:`models.families.FAMILIES`. No other code knows a model by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models import schemas
from models.base_model import Base
from models.errors import UserError
from models.prompt import Learn, find_learnt
from models.sample import Message

MAX_SHARD_SIZE = "2GB"  # of a weight file


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a training row.

    Attributes:
        index: of the message with the last learnt answer.
        parts: ids that are ignored and ids that are learnt, in turn; the first part is ignored.
    """

    index: int
    parts: list[list[int]]


@dataclass(frozen=True)
class PrefixShape:
    """Shape of the keys and values of one prefix token: ``layers`` × ``heads`` × ``channels``, each."""

    layers: int
    heads: int
    channels: int

    @property
    def width(self) -> int:
        """Values of one prefix token."""
        return 2 * self.layers * self.heads * self.channels


@dataclass(frozen=True)
class KeptActivations:
    """Elements per token that a block keeps for its backward pass, in the dtype of the base and in float32."""

    in_dtype: int
    in_float32: int = 0


class Family(ABC):
    """A family of base models. Tokenizers have their family as the attribute ``family``.

    Attributes:
        name: in ``base.json`` and in messages.
        vocabulary_file: file whose hash identifies the tokenizer.
        tokenizer_files: files without which the tokenizer cannot be loaded.
        optional_files: further files that are read if they exist.
        foreign_files: files of other libraries, by which a checkpoint could be another model than its weights.
        checkpoints_with_prefix: whether gradient checkpointing keeps a prefix.
        learns_all_in_one_row: whether a conversation with several learnt answers is one training row.
    """

    name: str
    vocabulary_file: str
    tokenizer_files: tuple[str, ...]
    optional_files: tuple[str, ...] = ()
    foreign_files: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    learns_all_in_one_row = False
    checkpoints_with_prefix = True

    # Tokens --------------------------------------------------------------------------------------

    @abstractmethod
    def load_vocabulary(self, folder: Path):
        """Load the vocabulary of a tokenizer folder, to count tokens without torch.

        Returns:
            An object with ``count_tokens(texts)``, ``count_prompts(conversations)``, ``count_answers(texts)``,
            ``tokenize(text)`` and ``control_tokens()``.
        """

    @abstractmethod
    def load_tokenizer(self, base: Base):
        """Load the tokenizer of a base model; its attribute ``family`` is this family.

        Returns:
            An object with ``decode(ids, skip_special_tokens)``, ``convert_ids_to_tokens(ids)`` and ``pad_token_id``.

        Raises:
            UserError: a file is damaged, has a key or value that is not allowed, or changed since it was hashed.
        """

    @abstractmethod
    def prompt_version(self, base: Base) -> str:
        """Return the version of the prompt, which manifests keep: it changes when messages give other tokens."""

    @abstractmethod
    def encode_text(self, tokenizer, text: str) -> list[int]:
        """Return the ids of a text without special tokens. A control token that the text spells is plain text."""

    @abstractmethod
    def encode_prompt(self, tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the prompt for the next answer.

        Args:
            messages: conversation that ends with the user's question; empty for an answer without a question.
        """

    @abstractmethod
    def encode_sample(self, tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Return the ids of the prompt, and those of the last answer with the token that ends it.

        Args:
            messages: conversation that ends with an answer, or a single message of role ``text``.
        """

    def encode_rows(self, tokenizer, messages: Sequence[Message], learn: Learn = "all") -> list[EncodedRow]:
        """Return the training rows of a conversation: one for every learnt answer, unless the family learns several."""
        return [
            EncodedRow(index, list(self.encode_sample(tokenizer, messages[: index + 1])))
            for index in find_learnt(messages, learn)
        ]

    def title(self, base: Base) -> str:
        """Return the model's name in a chat."""
        return Path(base.name).name

    def clean_answer(self, text: str) -> str:
        """Return a decoded answer as the published code of the family returns it."""
        return text.strip()

    # Model ---------------------------------------------------------------------------------------

    @abstractmethod
    def load_config(self, base: Base):
        """Load the configuration of a base model for :meth:`create_model`.

        Raises:
            UserError: the model is of another type, a key or value is not allowed, or the file changed.
        """

    @abstractmethod
    def create_model(self, config):
        """Return the model with random weights, on the device of the ``torch.device`` context.

        The model has the attribute ``blocks`` (its layers), and its forward pass takes ``segment_ids`` and
        ``label_indices`` as :class:`models.chatglm.ChatGLMForConditionalGeneration` does.
        """

    def check_files(self, base: Base) -> None:
        """Check that configuration and tokenizer of a base model belong together.

        Raises:
            UserError: they do not.
        """
        self.load_config(base)
        self.load_tokenizer(base)

    def check_vocabulary_size(self, base: Base, num_tokens: int, key: str, vocab_size: int) -> None:
        """Check that the model has an embedding for every token of its tokenizer.

        Args:
            key: of ``vocab_size`` in config.json.

        Raises:
            UserError: it has too few.
        """
        if num_tokens > vocab_size:
            raise UserError(
                f"The vocabulary in {base.folder} does not match the model: {self.vocabulary_file} has {num_tokens} "
                f"entries, but config.json has {key} {vocab_size}. Use the files of one checkpoint."
            )

    def published_bits(self, base: Base) -> int:
        """Return the bits of weights that the checkpoint holds quantized, 0 for plain weights."""
        return 0

    def convert_weights(self, base: Base, tensors: Iterator, model) -> Iterator:
        """Yield path, name and tensor of every weight under the name that the model has for it."""
        return tensors

    def save_model(self, model, base: Base, folder: Path) -> None:
        """Write weights, configuration and tokenizer of a model in the layout of its base."""
        self.save_weights(model, base, folder)
        for name in (*self.tokenizer_files, *self.optional_files):
            if name in base.files:
                (folder / name).write_bytes(base.read(name, schemas.MAX_VOCABULARY_BYTES))

    def save_weights(self, model, base: Base, folder: Path) -> None:
        """Write weights and configuration of a model in the layout of its base."""
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)

    def packed_columns(self, samples: Sequence[dict], config, capacity: int) -> dict:
        """Return further columns of a packed row, which the forward pass takes, tensors of (…, capacity)."""
        return {}

    def create_decoder(self):
        """Return a decoding loop for ``generate(custom_generate=…)``, or None for transformers' own."""
        return

    # Adapters and memory -------------------------------------------------------------------------

    def linear_names(self, names: Sequence[str], config) -> list[str]:
        """Return the model's names of linear layers, for names of params.yaml.

        Raises:
            UserError: the model has no such layer.
        """
        available = self.linear_shapes(config)
        if unknown := [name for name in names if name not in available]:
            raise UserError(f"The model has no linear layer {unknown[0]!r}; it has {', '.join(sorted(available))}.")
        return list(names)

    def check_training(self, method: str, gradient_checkpointing: bool) -> None:
        """Check that an adapter of this method can be trained with these settings.

        Raises:
            UserError: it cannot.
        """
        if method == "ptuning_v2" and gradient_checkpointing and not self.checkpoints_with_prefix:
            raise UserError(
                "gradient_checkpointing does not go with method ptuning_v2 for this base: the layers of transformers "
                "ignore a prefix then. Set gradient_checkpointing: false, or use method lora."
            )

    @abstractmethod
    def prefix_shape(self, config) -> PrefixShape:
        """Return the shape of a prefix of P-Tuning v2.

        Raises:
            UserError: the model's attention does not reach back to a prefix.
        """

    def import_prefix(self, rows, config):
        """Return published rows of a prefix, (tokens, width), as peft needs them."""
        return rows

    def export_prefix(self, rows, config):
        """Return rows of a trained prefix, (tokens, width), as the published code needs them."""
        return rows

    @abstractmethod
    def kept_activations(self, config, is_compiled: bool) -> KeptActivations:
        """Return what a block keeps per token for its backward pass, without adapters."""

    def kept_inputs(self, config, names: Sequence[str], is_compiled: bool, has_dropout: bool) -> int:
        """Return the elements per token that a block keeps in addition as inputs of LoRA layers.

        Args:
            names: of the linear layers.
            has_dropout: of LoRA; each layer then keeps an input of its own.
        """
        shapes = self.linear_shapes(config)
        return sum(shapes[name][1] for name in names)

    @abstractmethod
    def linear_shapes(self, config) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of a block's linear layers, by name."""
