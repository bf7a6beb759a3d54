"""ChatGLM-6B: its own model class, a two-way prompt, and a SentencePiece vocabulary with symbols for whitespace."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from models import schemas
from models.base_model import CONFIG, TOKENIZER_CONFIG, Base, first_line, hash_mismatch_message
from models.errors import UserError
from models.families.family import Family, KeptActivations, PrefixShape
from models.prompt import PROMPT_VERSION, render_prompt
from models.sample import Message
from models.text_normalization import restore_chinese_punctuation
from models.vocabulary import Vocabulary


class ChatGLM6BFamily(Family):
    """ChatGLM-6B, also its checkpoints in int4 and int8, and the tiny base.

    The prompt is a two-way prefix: its tokens attend to each other in both directions, so no answer within it can have
    a label. A conversation with several learnt answers is therefore encoded once for each, with all messages before it.
    """

    name = "chatglm-6b"
    vocabulary_file = "ice_text.model"
    tokenizer_files = ("ice_text.model", TOKENIZER_CONFIG)
    foreign_files = (*Family.foreign_files, "added_tokens.json")

    # Tokens --------------------------------------------------------------------------------------

    def load_vocabulary(self, folder: Path) -> Vocabulary:
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        options = {name: bool(config.get(name)) for name in ("do_lower_case", "remove_space")}
        return Vocabulary(folder / self.vocabulary_file, **options)

    def load_tokenizer(self, base: Base):
        from models.chatglm import ChatGLMTokenizer

        path = base.folder / TOKENIZER_CONFIG
        content = schemas.parse_json(base.read(TOKENIZER_CONFIG), path)
        config = schemas.validate_schema(schemas.TokenizerConfig, content, path)
        special_tokens = {key: _token_text(getattr(config, key)) for key in schemas.SPECIAL_TOKEN_KEYS}
        options = {key: getattr(config, key) for key in schemas.TOKENIZER_OPTIONS}
        options["num_image_tokens"] = self._num_image_tokens(base, config)
        vocabulary = base.folder / self.vocabulary_file
        try:
            tokenizer = ChatGLMTokenizer(vocabulary, **options, **special_tokens)
        except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"The tokenizer in {base.folder} cannot be read ({first_line(error)}); fetch {self.vocabulary_file} "
                f"and {TOKENIZER_CONFIG} again."
            ) from None
        if tokenizer.vocabulary.sha256 != base.files[self.vocabulary_file]["sha256"]:
            raise UserError(hash_mismatch_message(vocabulary))
        self._check_added_tokens(config, special_tokens, tokenizer, path)
        return tokenizer

    def _num_image_tokens(self, base: Base, config: schemas.TokenizerConfig) -> int:
        """Return the tokenizer's own number of image tokens, or else the one that the vocabulary size implies."""
        from models.chatglm.configuration_chatglm import image_tokens_of

        if config.num_image_tokens is not None:
            return config.num_image_tokens
        return image_tokens_of(self.load_config(base).vocab_size) if CONFIG in base.files else 0

    def _check_added_tokens(
        self, config: schemas.TokenizerConfig, special_tokens: dict[str, str], tokenizer, path: Path
    ) -> None:
        """Check that every added token is a special token, at the id that the vocabulary has for it.

        Raises:
            UserError: another token is added, or a special token has another id.
        """
        for token_id, token in config.added_tokens_decoder.items():
            is_known = token.content in special_tokens.values()
            if not is_known or tokenizer.convert_tokens_to_ids(token.content) != int(token_id):
                raise UserError(
                    f"{path} adds the token {schemas.to_printable(token.content)} as number {token_id}, which is not "
                    f"in the vocabulary of {self.vocabulary_file}; use the files of one checkpoint."
                )

    def prompt_version(self, base: Base) -> str:
        return PROMPT_VERSION

    def encode_text(self, tokenizer, text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode_prompt(self, tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the ids of ``prompt [gMASK] <sop>``."""
        return tokenizer(render_prompt(messages), split_special_tokens=True)["input_ids"]

    def encode_sample(self, tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        answer = self.encode_text(tokenizer, messages[-1].content)
        return self.encode_prompt(tokenizer, messages[:-1]), [*answer, tokenizer.eop_token_id]

    def title(self, base: Base) -> str:
        return "ChatGLM-6B"

    def clean_answer(self, text: str) -> str:
        return restore_chinese_punctuation(text)

    # Model ---------------------------------------------------------------------------------------

    def load_config(self, base: Base):
        from huggingface_hub.errors import StrictDataclassError

        from models.chatglm import ChatGLMConfig

        config, path = self._read_config(base), base.folder / CONFIG
        options = config.model_dump(exclude_unset=True, exclude=schemas.UNUSED_CONFIG_KEYS)
        try:
            return ChatGLMConfig(**options | {"dtype": config.dtype or config.torch_dtype})
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise UserError(f"{path}: {schemas.to_printable(error, 500)}") from None

    def _read_config(self, base: Base) -> schemas.ModelConfig:
        path = base.folder / CONFIG
        content = schemas.parse_json(base.read(CONFIG), path)
        if content.get("model_type") != "chatglm":
            model_type = schemas.to_printable(repr(content.get("model_type")))
            raise UserError(f"{path} has model_type {model_type}; {self.name} needs 'chatglm'.")
        if keys := [key for key in schemas.SUCCESSOR_KEYS if key in content]:
            raise UserError(f"{path} describes a successor of ChatGLM-6B (it has {', '.join(keys)}).")
        return schemas.validate_schema(schemas.ModelConfig, content, path)

    def create_model(self, config):
        from models.chatglm import ChatGLMForConditionalGeneration

        return ChatGLMForConditionalGeneration(config)

    def check_files(self, base: Base) -> None:
        config, tokenizer, folder = self.load_config(base), self.load_tokenizer(base), base.folder
        self.check_vocabulary_size(base, len(tokenizer), "vocab_size", config.vocab_size)
        token_ids = {
            "bos_token_id": tokenizer.sop_token_id,
            "eos_token_id": tokenizer.eop_token_id,
            "gmask_token_id": tokenizer.gmask_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        }
        for key, token_id in token_ids.items():
            if getattr(config, key) != token_id:
                raise UserError(
                    f"The vocabulary in {folder} does not match the model: {CONFIG} has {key} {getattr(config, key)}, "
                    f"but in {self.vocabulary_file} it is {token_id}. Use the files of one checkpoint."
                )

    def published_bits(self, base: Base) -> int:
        return self._read_config(base).quantization_bit

    def convert_weights(self, base: Base, tensors: Iterator, model) -> Iterator:
        """Dequantize weights that the checkpoint holds in 4 or 8 bits (:mod:`models.published_quantization`)."""
        import torch

        from models.published_quantization import dequantize_weights

        bits = self.published_bits(base)
        return dequantize_weights(tensors, bits, model.config.dtype or torch.float16) if bits else tensors

    def packed_columns(self, samples: Sequence[dict], config, capacity: int) -> dict:
        """Return ``position_ids_2d`` (2, capacity): positions and block positions that each sample has alone."""
        import torch

        from models.chatglm.masks import derive_position_ids

        ids = [torch.tensor(sample["input_ids"]) for sample in samples]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        by_sample = derive_position_ids(padded, config).transpose(1, 2)  # (samples, longest, 2)
        positions = torch.cat([row[: len(tokens)] for row, tokens in zip(by_sample, ids, strict=True)])
        padding = positions.new_tensor([0, 1]).expand(capacity - len(positions), 2)
        return {"position_ids_2d": torch.cat((positions, padding)).T.contiguous()}

    def create_decoder(self):
        from models.decoding import Decoder

        return Decoder()

    # Adapters and memory -------------------------------------------------------------------------

    def prefix_shape(self, config) -> PrefixShape:
        heads = config.num_attention_heads
        return PrefixShape(config.num_layers, heads, config.hidden_size // heads)

    def kept_activations(self, config, is_compiled: bool) -> KeptActivations:
        """Inputs of both norms, 2h; output of attention, h; MLP before GELU; query, key and value, 3h.

        Without compiled blocks the latter are 5h, as the value is a view that keeps all three alive.
        """
        hidden = config.hidden_size
        return KeptActivations(3 * hidden + config.inner_hidden_size + (3 if is_compiled else 5) * hidden)

    def kept_inputs(self, config, names: Sequence[str], is_compiled: bool, has_dropout: bool) -> int:
        """Compiled blocks keep the input of ``dense`` anyway."""
        kept_anyway = ("dense",) if is_compiled else ()
        others = [name for name in names if name not in kept_anyway]
        return super().kept_inputs(config, others, is_compiled, has_dropout)

    def linear_shapes(self, config) -> dict[str, tuple[int, int]]:
        hidden, inner = config.hidden_size, config.inner_hidden_size
        return {
            "query_key_value": (3 * hidden, hidden),
            "dense": (hidden, hidden),
            "dense_h_to_4h": (inner, hidden),
            "dense_4h_to_h": (hidden, inner),
        }


def _token_text(token: str | schemas.AddedToken) -> str:
    return token if isinstance(token, str) else token.content
