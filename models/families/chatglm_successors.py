"""ChatGLM2-6B and ChatGLM3-6B: transformers' Glm, with the published tokenizer, prompts and weight names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from models import schemas, successor_prompt
from models.base_model import CONFIG, TOKENIZER_CONFIG, Base, first_line, hash_mismatch_message
from models.errors import UserError
from models.families.causal_family import CausalFamily
from models.families.family import MAX_SHARD_SIZE, EncodedRow
from models.prompt import IGNORED_LABEL, Learn, find_learnt
from models.sample import Message
from models.storage import write_json
from models.vocabulary import END_TOKEN, SuccessorVocabulary

_TRAINING_TIME = ("[[训练时间]]", "2023年")  # a placeholder in answers, which the published chat() replaces


class SuccessorTokenizer:
    """The tokenizer of ChatGLM2-6B or ChatGLM3-6B, with the methods that generation needs."""

    pad_token_id = 0

    def __init__(self, vocabulary: SuccessorVocabulary, family: "SuccessorFamily"):
        self.vocabulary, self.family = vocabulary, family
        self._control_ids = frozenset(vocabulary.control_ids.values())

    def __len__(self) -> int:
        return 1 + max(self._control_ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_) -> str:
        """Return the text of ids, without those of control tokens if they are skipped."""
        return self.vocabulary.decode([i for i in ids if not (skip_special_tokens and i in self._control_ids)])

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the spelling of every token."""
        return [self.vocabulary.spell(token_id) for token_id in ids]


class SuccessorFamily(CausalFamily):
    """What both models have in common."""

    vocabulary_file = "tokenizer.model"
    tokenizer_files = ("tokenizer.model", TOKENIZER_CONFIG)
    foreign_files = (*CausalFamily.foreign_files, "added_tokens.json")
    has_roles: bool

    # Tokens --------------------------------------------------------------------------------------

    def load_vocabulary(self, folder: Path) -> SuccessorVocabulary:
        return SuccessorVocabulary(folder / self.vocabulary_file, self.has_roles)

    def load_tokenizer(self, base: Base) -> SuccessorTokenizer:
        path = base.folder / TOKENIZER_CONFIG
        content = schemas.parse_json(base.read(TOKENIZER_CONFIG), path)
        schemas.validate_schema(schemas.SuccessorTokenizerConfig, content, path)
        path = base.folder / self.vocabulary_file
        try:
            vocabulary = self.load_vocabulary(base.folder)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The tokenizer in {base.folder} cannot be read ({first_line(error)}); fetch {path.name} again."
            ) from None
        if vocabulary.sha256 != base.files[self.vocabulary_file]["sha256"]:
            raise UserError(hash_mismatch_message(path))
        return SuccessorTokenizer(vocabulary, self)

    def prompt_version(self, base: Base) -> str:
        return f"{self.name}/1"

    def encode_text(self, tokenizer: SuccessorTokenizer, text: str) -> list[int]:
        return tokenizer.vocabulary.encode(text)

    def clean_answer(self, text: str) -> str:
        return text.strip().replace(*_TRAINING_TIME)

    # Model ---------------------------------------------------------------------------------------

    def load_config(self, base: Base):
        from models.families.successor_weights import build_config

        path = base.folder / CONFIG
        content = schemas.parse_json(base.read(CONFIG), path)
        published = schemas.validate_schema(schemas.SuccessorConfig, content, path)
        config = build_config(published, path, ratio_divides_positions=not self.has_roles)
        config.eos_token_id = self.end_token_ids(config.eos_token_id, base)
        return config

    def end_token_ids(self, end_token_id: int, base: Base) -> int | list[int]:
        """Return the ids that end an answer: that of ``</s>``, and those of roles other than the assistant."""
        return end_token_id

    def check_files(self, base: Base) -> None:
        config, tokenizer = self.load_config(base), self.load_tokenizer(base)
        self.check_vocabulary_size(base, len(tokenizer), "padded_vocab_size", config.vocab_size)

    def convert_weights(self, base: Base, tensors: Iterator, model) -> Iterator:
        from models.families.successor_weights import convert_weights

        return convert_weights(tensors, model.config)

    def save_weights(self, model, base: Base, folder: Path) -> None:
        from huggingface_hub import save_torch_state_dict

        from models.families.successor_weights import publish_weights

        save_torch_state_dict(publish_weights(model), folder, max_shard_size=MAX_SHARD_SIZE)
        config = schemas.parse_json(base.read(CONFIG), base.folder / CONFIG)
        write_json(folder / CONFIG, config | {"torch_dtype": str(model.dtype).removeprefix("torch.")})

    # Adapters ------------------------------------------------------------------------------------

    def import_prefix(self, rows, config):
        from models.families.successor_weights import rotate_prefix

        return rotate_prefix(rows, config, len(rows))

    def export_prefix(self, rows, config):
        from models.families.successor_weights import rotate_prefix

        return rotate_prefix(rows, config, -len(rows))


class ChatGLM2Family(SuccessorFamily):
    """ChatGLM2-6B, whose prompt is a text with numbered rounds."""

    name = "chatglm2-6b"
    has_roles = False

    def encode_prompt(self, tokenizer: SuccessorTokenizer, messages: Sequence[Message]) -> list[int]:
        return successor_prompt.encode_rounds(tokenizer.vocabulary, messages)

    def encode_sample(self, tokenizer: SuccessorTokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        answer = tokenizer.vocabulary.encode(messages[-1].content)
        end = tokenizer.vocabulary.control_ids[END_TOKEN]
        return self.encode_prompt(tokenizer, messages[:-1]), [*answer, end]


class ChatGLM3Family(SuccessorFamily):
    """ChatGLM3-6B, which has tokens for roles; all learnt answers of a conversation are in one row."""

    name = "chatglm3-6b"
    has_roles = True
    learns_all_in_one_row = True

    def encode_prompt(self, tokenizer: SuccessorTokenizer, messages: Sequence[Message]) -> list[int]:
        return successor_prompt.encode_roles(tokenizer.vocabulary, messages)

    def encode_sample(self, tokenizer: SuccessorTokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        vocabulary, content = tokenizer.vocabulary, messages[-1].content
        end = vocabulary.control_ids[END_TOKEN]
        if messages[-1].role == "text":
            return successor_prompt.start_ids(vocabulary), [*vocabulary.encode(content), end]
        _, *answer = successor_prompt.encode_message(vocabulary, "assistant", content)
        return self.encode_prompt(tokenizer, messages[:-1]), [*answer, end]  # the prompt ends with the role's token

    def encode_rows(
        self, tokenizer: SuccessorTokenizer, messages: Sequence[Message], learn: Learn = "all"
    ) -> list[EncodedRow]:
        learnt = find_learnt(messages, learn)
        if not learnt or messages[-1].role == "text":
            return super().encode_rows(tokenizer, messages, learn)
        row = successor_prompt.label_roles(tokenizer.vocabulary, messages[: learnt[-1] + 1], learn)
        return [EncodedRow(learnt[-1], split_parts(row["input_ids"], row["labels"]))]

    def end_token_ids(self, end_token_id: int, base: Base) -> int | list[int]:
        if self.vocabulary_file not in base.files:  # of a base without a tokenizer, which cannot answer questions
            return end_token_id
        control_ids = self.load_tokenizer(base).vocabulary.control_ids
        return [end_token_id, control_ids["<|user|>"], control_ids["<|observation|>"]]


def split_parts(ids: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """Return ids as ignored and learnt parts in turn, see :class:`models.families.family.EncodedRow`."""
    parts: list[list[int]] = [[]]
    for token_id, label in zip(ids, labels, strict=True):
        is_learnt = label != IGNORED_LABEL
        if is_learnt != (len(parts) % 2 == 0):
            parts.append([])
        parts[-1].append(token_id)
    return parts
