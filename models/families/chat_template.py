"""Any causal language model of transformers that has a chat template: GLM-4, Qwen, Llama, Gemma, SmolLM and others.

Conversations become tokens by the checkpoint's own template (Jinja in transformers' sandbox) and ``tokenizer.json``.
Code in a checkpoint is never run.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

from models import schemas
from models.base_model import CONFIG, TOKENIZER_CONFIG, Base, first_line, hash_files
from models.errors import UserError
from models.families.causal_family import CausalFamily
from models.families.family import EncodedRow
from models.families.template_tokenizer import TemplateTokenizer
from models.prompt import Learn, find_learnt
from models.sample import Message

log = logging.getLogger("tuneline.families")
TEMPLATE, GENERATION_CONFIG = "chat_template.jinja", "generation_config.json"
# Model types whose tiny random models are trained, saved, loaded, exported and asked in the tests.
VERIFIED_TYPES = ("gemma3_text", "glm", "glm4", "llama", "qwen2", "qwen3")
# Keys of config.json that name code or describe the file, not the model.
_UNUSED_KEYS = ("auto_map", "architectures", "transformers_version", "torch_dtype", "_name_or_path", "model_type",
                "attn_implementation", "_attn_implementation")  # fmt: skip
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
    thinking = False  # passed to the template as enable_thinking

    # Tokens --------------------------------------------------------------------------------------

    def load_vocabulary(self, folder: Path) -> "TemplateVocabulary":
        present = [name for name in (CONFIG, *self.optional_files) if (folder / name).is_file()]
        files = hash_files(folder, [*self.tokenizer_files, *present])
        return TemplateVocabulary(self.load_tokenizer(Base(str(folder), folder, None, files, self.name)))

    def load_tokenizer(self, base: Base) -> TemplateTokenizer:
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
            loaded = TemplateTokenizer(tokenizer, content, self._end_token_ids(base), self)
        except UserError:
            raise
        except BaseException as error:  # tokenizers raises Exception itself, and a BaseException for a panic in Rust
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(
                f"The tokenizer in {base.folder} cannot be read ({first_line(error)}); fetch {self.vocabulary_file} "
                f"and {TOKENIZER_CONFIG} again."
            ) from None
        self._check_added_tokens(loaded, config, base.folder)
        return loaded

    def _check_added_tokens(self, tokenizer: TemplateTokenizer, config: dict, folder: Path) -> None:
        """Check that tokenizer.json has the tokens that tokenizer_config.json adds, at their ids.

        Raises:
            UserError: one is missing, or has another id.
        """
        decoder = config.get("added_tokens_decoder")
        for token_id, token in decoder.items() if isinstance(decoder, dict) else ():
            text = _token_text(token)
            if text is None or str(tokenizer.tokenizer.convert_tokens_to_ids(text)) != str(token_id):
                raise UserError(
                    f"{folder / TOKENIZER_CONFIG} adds the token {schemas.to_printable(text)} as number "
                    f"{schemas.to_printable(token_id)}, which is not in {self.vocabulary_file}. Save the tokenizer "
                    "with transformers again, so that one file has all tokens."
                )

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

    def encode_text(self, tokenizer: TemplateTokenizer, text: str) -> list[int]:
        return tokenizer.encode_text(text)

    def encode_prompt(self, tokenizer: TemplateTokenizer, messages: Sequence[Message]) -> list[int]:
        return tokenizer.encode(tokenizer.render(messages, with_prompt=True))

    def encode_sample(self, tokenizer: TemplateTokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        if messages[-1].role == "text":
            start = tokenizer.tokenizer.bos_token_id
            end = tokenizer.tokenizer.eos_token_id
            end = tokenizer.end_token_ids[0] if end is None else end
            return [] if start is None else [start], [*tokenizer.encode_text(messages[-1].content), end]
        prompt, answer = tokenizer.encode_pair(messages)
        return prompt, tokenizer.add_end(answer)

    def encode_rows(
        self, tokenizer: TemplateTokenizer, messages: Sequence[Message], learn: Learn = "all"
    ) -> list[EncodedRow]:
        learnt = find_learnt(messages, learn)
        if len(learnt) < 2:
            return super().encode_rows(tokenizer, messages, learn)
        parts = _join_pairs(tokenizer, [tokenizer.encode_pair(messages[: index + 1]) for index in learnt])
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
        if options["dtype"] not in (None, *get_args(schemas.DtypeName)):
            raise UserError(f"{path} has the dtype {schemas.to_printable(options['dtype'])}, which is not supported.")
        try:
            config = CONFIG_MAPPING[model_type](**options)
            config._attn_implementation = "sdpa"  # the mask of packed rows is one of booleans
        except Exception as error:  # the strict data classes of transformers raise several types
            raise UserError(f"{path}: {schemas.to_printable(first_line(error), 500)}") from None
        self._check_head(config, path)
        ends = self._end_token_ids(base)
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
        if config.pad_token_id is None:
            config.pad_token_id = ends[0]
        return config

    def _check_layers(self, config, path: Path) -> None:
        """Check that a model can be built, and has its layers and its head where they are expected.

        Raises:
            UserError: it has not.
        """
        try:
            model = self.create_on_meta(config)
            _, head = model.blocks[0], model.lm_head
        except AttributeError:
            raise UserError(
                f"{path} has model_type {config.model_type!r}, whose layers and head Tuneline does not know. Verified "
                f"are {', '.join(VERIFIED_TYPES)}, and ChatGLM-6B, 2 and 3."
            ) from None
        except Exception as error:  # a value that no model can have
            raise UserError(f"{path}: {schemas.to_printable(first_line(error), 500)}") from None
        if head.bias is not None:
            raise UserError(f"{path} has model_type {config.model_type!r}, whose head has a bias; it is not supported.")

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
        self.check_vocabulary_size(base, len(tokenizer), "vocab_size", config.vocab_size)
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if not all(0 <= token_id < config.vocab_size for token_id in (*ends, config.pad_token_id)):
            raise UserError(f"{base.folder / CONFIG} has an eos_token_id or pad_token_id beyond its vocabulary.")
        self.encode_sample(tokenizer, (Message("user", "?"), Message("assistant", "!")))  # the template may fail
        self._check_layers(config, base.folder / CONFIG)
        if config.model_type not in VERIFIED_TYPES:
            log.warning(
                "base: models of type %s are not verified: compare answers of the base with those of transformers, "
                "and evaluate the adapter, before you rely on it",
                config.model_type,
            )


class ThinkingTemplateFamily(ChatTemplateFamily):
    """The same, with prompts that ask a thinking model to think before its answer."""

    name = "chat-template-thinking"
    thinking = True


def _join_pairs(tokenizer: TemplateTokenizer, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[int]] | None:
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
        if parts and not tokenizer.has_end(parts[-1]):
            if not tokenizer.has_end(following[:1]):
                return None
            parts[-1].append(following.pop(0))
        parts += [following, [*answer]]
        encoded = prompt + answer
    return [*parts[:-1], tokenizer.add_end(parts[-1])]


def _token_text(token: object) -> str | None:
    """Return the text of a special token in tokenizer_config.json, which is a string or an object; None for others."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


class TemplateVocabulary:
    """Token counts by a tokenizer with a chat template, for the data checks."""

    def __init__(self, tokenizer: TemplateTokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return self.tokenizer.convert_ids_to_tokens(self.tokenizer.encode_text(text))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(self.tokenizer.encode_text(text)) for text in texts]

    def count_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Return the number of tokens of the prompts for the next answers."""
        return [len(self.tokenizer.encode(self.tokenizer.render(messages, True))) for messages in conversations]

    def count_answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of answers with the token that ends them."""
        return [self._answer_overhead + len(self.tokenizer.encode_answer_text(text)) for text in texts]

    def control_tokens(self) -> tuple[str, ...]:
        """Return the strings that a text must not contain."""
        return self.tokenizer.control_tokens()

    @cached_property
    def _answer_overhead(self) -> int:
        """Tokens that the template adds to an answer, such as its end."""
        _, answer = self.tokenizer.encode_pair((Message("user", "?"), Message("assistant", "!")))
        return len(self.tokenizer.add_end(answer)) - len(self.tokenizer.encode_text("!"))
