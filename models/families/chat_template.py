"""Any causal language model of transformers that has a chat template: GLM-4, Qwen, Llama, Gemma, SmolLM and others.

Conversations become tokens by the checkpoint's own template (Jinja in transformers' sandbox) and ``tokenizer.json``.
Code in a checkpoint is never run.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from models import schemas
from models.base_model import CONFIG, TOKENIZER_CONFIG, Base, first_line, hash_files
from models.errors import UserError
from models.families.causal_family import CausalFamily
from models.families.family import EncodedRow
from models.prompt import Learn, find_learnt
from models.sample import Message

log = logging.getLogger("tuneline.families")
TEMPLATE, GENERATION_CONFIG = "chat_template.jinja", "generation_config.json"
# Model types whose tiny random models are trained, saved, loaded, exported and asked in the tests.
VERIFIED_TYPES = ("gemma3_text", "glm", "glm4", "llama", "qwen2", "qwen3")
# Keys of config.json that name code or describe the file, not the model.
_UNUSED_KEYS = ("auto_map", "architectures", "transformers_version", "torch_dtype", "_name_or_path", "model_type")
# Settings by which a head's logits are not the product of its input and its weight.
_HEAD_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


class ChatTemplateFamily(CausalFamily):
    """A model of transformers with the chat template of its checkpoint.

    A conversation is one training row if the template renders every turn as a prefix of the longer conversation. A
    template that changes earlier turns, as those of thinking models do, gives a row for every learnt answer.
    """

    name = "chat-template"
    vocabulary_file = "tokenizer.json"
    tokenizer_files = ("tokenizer.json", TOKENIZER_CONFIG)
    optional_files = (TEMPLATE, GENERATION_CONFIG, "special_tokens_map.json")
    learns_all_in_one_row = True

    # Tokens --------------------------------------------------------------------------------------

    def load_vocabulary(self, folder: Path) -> "TemplateVocabulary":
        present = [name for name in (CONFIG, *self.optional_files) if (folder / name).is_file()]
        files = hash_files(folder, [*self.tokenizer_files, *present])
        return TemplateVocabulary(self.load_tokenizer(Base(str(folder), folder, None, files, self.name)))

    def load_tokenizer(self, base: Base):
        """Load transformers' PreTrainedTokenizerFast from the bytes that were hashed."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        config = self._read_json(base, TOKENIZER_CONFIG)
        content = base.read(self.vocabulary_file, schemas.MAX_VOCABULARY_BYTES)
        special = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        template = self._read_template(base, config)
        try:
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_buffer(content),
                chat_template=template,
                clean_up_tokenization_spaces=False,
                padding_side="left",
                **{name: token for name, token in special.items() if token is not None},
            )
        except Exception as error:  # tokenizers raises Exception itself for damaged files
            raise UserError(
                f"The tokenizer in {base.folder} cannot be read ({first_line(error)}); fetch {self.vocabulary_file} "
                f"and {TOKENIZER_CONFIG} again."
            ) from None
        tokenizer.family, tokenizer.end_token_ids = self, self._end_token_ids(base)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tokenizer.end_token_ids[0])
        return tokenizer

    def _read_json(self, base: Base, name: str) -> dict:
        path = base.folder / name
        return schemas.parse_json(base.read(name), path) if name in base.files else {}

    def _read_template(self, base: Base, config: dict) -> str:
        """Return the chat template, from its own file or from tokenizer_config.json.

        Raises:
            UserError: there is none.
        """
        template = config.get("chat_template")
        if TEMPLATE in base.files:
            template = base.read(TEMPLATE).decode("utf-8", "replace")
        if isinstance(template, list):  # named templates, of which "default" is the one of a chat
            by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = by_name.get("default")
        if not isinstance(template, str):
            raise UserError(
                f"The base model in {base.folder} has no chat template, so its prompt is unknown. Use a checkpoint "
                f"that was trained for chats, or add the template of its authors as {TEMPLATE}."
            )
        return template

    def prompt_version(self, base: Base) -> str:
        template = self._read_template(base, self._read_json(base, TOKENIZER_CONFIG))
        return f"{self.name}/1 {hashlib.sha256(template.encode()).hexdigest()[:12]}"

    def encode_text(self, tokenizer, text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode_prompt(self, tokenizer, messages: Sequence[Message]) -> list[int]:
        return _encode_rendered(tokenizer, _render(tokenizer, messages, with_prompt=True))

    def encode_sample(self, tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        if messages[-1].role == "text":
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return start, [*self.encode_text(tokenizer, messages[-1].content), tokenizer.eos_token_id]
        prompt, answer = _encode_rendered_pair(tokenizer, messages)
        return prompt, answer if _has_end(tokenizer, answer) else _add_end(tokenizer, answer)

    def encode_rows(self, tokenizer, messages: Sequence[Message], learn: Learn = "all") -> list[EncodedRow]:
        learnt = find_learnt(messages, learn)
        if len(learnt) < 2:
            return super().encode_rows(tokenizer, messages, learn)
        pairs = [_encode_rendered_pair(tokenizer, messages[: index + 1]) for index in learnt]
        parts = _join_pairs(tokenizer, pairs)
        return super().encode_rows(tokenizer, messages, learn) if parts is None else [EncodedRow(learnt[-1], parts)]

    # Model ---------------------------------------------------------------------------------------

    def load_config(self, base: Base):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        content, path = self._read_json(base, CONFIG), base.folder / CONFIG
        model_type = content.get("model_type")
        if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type not in CONFIG_MAPPING:
            raise UserError(
                f"{path} has model_type {schemas.to_printable(repr(model_type))}, for which transformers has no causal "
                f"language model. Verified are {', '.join(VERIFIED_TYPES)}, and ChatGLM-6B, 2 and 3."
            )
        options = {key: value for key, value in content.items() if key not in _UNUSED_KEYS}
        options["dtype"] = content.get("dtype") or content.get("torch_dtype")
        try:
            config = CONFIG_MAPPING[model_type](**options)
        except Exception as error:  # the strict data classes of transformers raise several types
            raise UserError(f"{path}: {schemas.to_printable(first_line(error), 500)}") from None
        self._check_head(config, path)
        ends = self._end_token_ids(base)
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
        if config.pad_token_id is None:
            config.pad_token_id = ends[0]
        return config

    def _check_layers(self, config, path: Path) -> None:
        """Check that a model of a type that is not verified has its layers and its head where they are expected.

        Raises:
            UserError: it has not.
        """
        try:
            self.linear_shapes(config)
        except AttributeError:
            raise UserError(
                f"{path} has model_type {config.model_type!r}, whose layers and head Tuneline does not know. Verified "
                f"are {', '.join(VERIFIED_TYPES)}, and ChatGLM-6B, 2 and 3."
            ) from None

    def _check_head(self, config, path: Path) -> None:
        """Check that the head's logits are the product of its input and its weight.

        Raises:
            UserError: a setting changes them.
        """
        for key in _HEAD_SETTINGS:
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise UserError(
                    f"{path} has {key} {getattr(config, key)}; models with scaled logits are not supported."
                )

    def _end_token_ids(self, base: Base) -> list[int]:
        """Return the ids that end an answer, by config.json and generation_config.json.

        Raises:
            UserError: there is none.
        """
        ends: list[int] = []
        for name in (CONFIG, GENERATION_CONFIG):
            value = self._read_json(base, name).get("eos_token_id")
            ends += [token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)]
        if not ends:
            raise UserError(f"{base.folder / CONFIG} has no eos_token_id, so no answer would end; add it.")
        return list(dict.fromkeys(ends))

    def check_files(self, base: Base) -> None:
        config, tokenizer = self.load_config(base), self.load_tokenizer(base)
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"The vocabulary in {base.folder} does not match the model: {self.vocabulary_file} has "
                f"{len(tokenizer)} entries, but {CONFIG} has vocab_size {config.vocab_size}. Use the files of one "
                "checkpoint."
            )
        if config.model_type not in VERIFIED_TYPES:
            self._check_layers(config, base.folder / CONFIG)
            log.warning(
                "base: models of type %s are not verified: compare answers of the base with those of transformers, "
                "and evaluate the adapter, before you rely on it",
                config.model_type,
            )


# Rendering -----------------------------------------------------------------------------------------

# A control token that a message spells, by its number, while the template renders the message; private use characters.
_SPELLED = re.compile("\ue000(\\d+)\ue001")


def _render(tokenizer, messages: Sequence[Message], with_prompt: bool = False) -> str:
    """Return the text of a conversation by the chat template; control tokens that a message spells are escaped.

    Without messages the text is that of an empty question. A template that knows no system messages gets them before
    the first question.

    Args:
        with_prompt: append the beginning of an answer.

    Raises:
        UserError: the template refuses the conversation.
    """
    from jinja2 import TemplateError

    chat = [{"role": message.role, "content": _escape(tokenizer, message.content)} for message in messages]
    chat = chat or [{"role": "user", "content": ""}]
    options = {"tokenize": False, "add_generation_prompt": with_prompt, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(chat, **options)
    except TemplateError as error:
        if chat[0]["role"] != "system" or len(chat) == 1:
            raise UserError(
                f"The chat template of the base model refuses a conversation: {first_line(error)}."
            ) from None
    question = {"role": "user", "content": f"{chat[0]['content']}\n{chat[1]['content']}"}
    return tokenizer.apply_chat_template([question, *chat[2:]], **options)


def _escape(tokenizer, text: str) -> str:
    """Return a text with every control token that it spells replaced by a mark."""
    pattern, numbers = _control_tokens(tokenizer)
    return pattern.sub(lambda match: f"\ue000{numbers[match[0]]}\ue001", text)


def _encode_rendered(tokenizer, text: str) -> list[int]:
    """Return the ids of a rendered text, with control tokens of the template, and those of messages as plain text."""
    spellings = [*_control_tokens(tokenizer)[1]]
    ids: list[int] = []
    for index, part in enumerate(_SPELLED.split(text)):
        if index % 2:
            ids += tokenizer.family.encode_text(tokenizer, spellings[int(part)])
        elif part:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def _control_tokens(tokenizer) -> tuple[re.Pattern, dict[str, int]]:
    """Return a pattern of the control tokens' spellings, and a number for every spelling."""
    if not hasattr(tokenizer, "control_spellings"):
        spellings = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        tokenizer.control_spellings = (pattern, {spelling: number for number, spelling in enumerate(spellings)})
    return tokenizer.control_spellings


def _encode_rendered_pair(tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and of the last answer up to the token that ends it, if the template writes one."""
    prompt, whole = _render(tokenizer, messages[:-1], with_prompt=True), _render(tokenizer, messages)
    # The prompt of a thinking model can have an empty block, which the template leaves out before an answer.
    is_prefix = whole.startswith(prompt)
    answer = _encode_rendered(
        tokenizer, whole.removeprefix(prompt) if is_prefix else _escape(tokenizer, messages[-1].content)
    )
    ends = [index for index, token_id in enumerate(answer) if token_id in tokenizer.end_token_ids]
    return _encode_rendered(tokenizer, prompt), answer[: ends[-1] + 1] if ends else answer


def _has_end(tokenizer, ids: Sequence[int]) -> bool:
    return bool(ids) and ids[-1] in tokenizer.end_token_ids


def _add_end(tokenizer, answer: list[int]) -> list[int]:
    return [*answer, tokenizer.end_token_ids[0]]


def _join_pairs(tokenizer, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[int]] | None:
    """Return the parts of one row for the prompts and answers of a conversation.

    Where the template writes no end after an answer, the next role's token ends it if generation stops there.

    Returns:
        See :class:`models.families.family.EncodedRow`; None if a prompt does not begin with the prompt and the answer
        before, or if an answer within the conversation would have no end.
    """
    parts, encoded = [], []
    for prompt, answer in pairs:
        if prompt[: len(encoded)] != encoded:
            return None
        following = prompt[len(encoded) :]
        if parts and not _has_end(tokenizer, parts[-1]):
            if not _has_end(tokenizer, following[:1]):
                return None
            parts[-1].append(following.pop(0))
        parts += [following, [*answer]]
        encoded = prompt + answer
    if not _has_end(tokenizer, parts[-1]):
        parts[-1] = _add_end(tokenizer, parts[-1])
    return parts


def _token_text(token: object) -> str | None:
    """Return the text of a special token in tokenizer_config.json, which is a string or an object; None for others."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


class TemplateVocabulary:
    """Token counts by a tokenizer with a chat template, for the data checks."""

    def __init__(self, tokenizer):
        self.tokenizer, self.family = tokenizer, tokenizer.family

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return self.tokenizer.convert_ids_to_tokens(self.family.encode_text(self.tokenizer, text))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text. A lone surrogate, which has no UTF-8 form, counts as ``?``."""
        encodable = [text.encode("utf-8", "replace").decode() for text in texts]
        if not encodable:
            return []
        encoded = self.tokenizer(encodable, add_special_tokens=False, split_special_tokens=True)
        return [len(ids) for ids in encoded["input_ids"]]

    def count_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Return the number of tokens of the prompts for the next answers."""
        return [len(self.family.encode_prompt(self.tokenizer, messages)) for messages in conversations]

    def count_answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of answers with the token that ends them."""
        return [count + self._answer_overhead for count in self.count_tokens(texts)]

    @cached_property
    def _answer_overhead(self) -> int:
        """Tokens that the template adds to an answer, such as its end."""
        question, answer = Message("user", "?"), Message("assistant", "!")
        _, ids = self.family.encode_sample(self.tokenizer, (question, answer))
        return len(ids) - len(self.family.encode_text(self.tokenizer, answer.content))

    def control_tokens(self) -> tuple[str, ...]:
        """Return the strings that a text must not contain."""
        return tuple(str(token) for token in self.tokenizer.added_tokens_encoder)
