"""Pydantic schemas of the JSON files of checkpoints and adapters, and limits for parsing them.

The files are untrusted: they may come from other people or from a failing disk. Unknown keys, wrong types, NaN, numbers
out of range, duplicate keys, deep nesting and large files raise a UserError of one line.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import UserError
from models.linear_layers import LinearLayer

MAX_BYTES = 16 * 2**20
MAX_VOCABULARY_BYTES = 64 * 2**20  # of tokenizer.json; that of Gemma 3 takes 33 MB
MAX_DEPTH = 32
MAX_KEYS = 1000  # of the top-level object; pydantic collects an error for each unknown key

Text = Annotated[str, Field(max_length=4096)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")]  # no path
DtypeName = Literal["float32", "float16", "bfloat16"]
FamilyName = Literal["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "chat-template", "chat-template-thinking"]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


SchemaT = TypeVar("SchemaT", bound=Schema)


# Parsing -------------------------------------------------------------------------------------------


def read_small_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a small file.

    Raises:
        UserError: it is missing, not a regular file, cannot be read, or is larger than ``limit`` bytes.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `dvc repro` to create it.")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    if len(content) > limit:
        raise UserError(f"{path} is larger than {limit} bytes, the limit for this file; fetch or create it again.")
    return content


def parse_json(content: bytes, path: Path, max_keys: int = MAX_KEYS) -> dict:
    """Parse the content of a file as a JSON object.

    Args:
        path: of the file, for error messages.
        max_keys: limit for the keys of the top-level object.

    Raises:
        UserError: the content is not a JSON object, repeats a key, has too many keys, or nests deeper than
            ``MAX_DEPTH``.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=dict_without_duplicates)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({to_printable(error)}); fetch or create it again.") from None
    except RecursionError:
        raise UserError(f"{path} nests deeper than {MAX_DEPTH} levels; fetch or create it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; fetch or create it again.")
    if len(value) > max_keys:
        raise UserError(f"{path} has {len(value)} keys, more than the {max_keys} allowed; fetch or create it again.")
    if _is_too_deep(value):
        raise UserError(f"{path} nests deeper than {MAX_DEPTH} levels; fetch or create it again.")
    return value


def dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object as a dict; an ``object_pairs_hook`` for ``json.loads``.

    Raises:
        ValueError: a key occurs twice, of which ``json.loads`` alone would keep the last.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object repeats a key")
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for nodes in children for child in nodes if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def validate_schema(schema: type[SchemaT], content: dict, path: Path) -> SchemaT:
    """Validate the content of a file.

    Args:
        path: of the file, for error messages.

    Raises:
        UserError: a key is missing or unknown, or a value is not allowed; the message names the first such key.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(to_printable(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise UserError(f"{path}: the key {key} is not known; remove it, or use the file that came with the model.")
    reason = to_printable(first["msg"].removeprefix("Value error, "), 300)
    raise UserError(f"{path}: {f'{key}: ' if key else ''}{reason}.")


def to_printable(value: object, length: int = 80) -> str:
    """Return a value as text for an error message: one line, at most ``length`` characters, lone surrogates escaped."""
    text = " ".join(str(value).encode("utf-8", "backslashreplace").decode("utf-8").split())
    return text if len(text) <= length else f"{text[:length]}…"


# A base model --------------------------------------------------------------------------------------


class FileEntry(Schema):
    """Size in bytes and hash of one file."""

    size: Annotated[int, Field(ge=0, lt=2**50)]
    sha256: Sha256


class BaseRecord(Schema):
    """``base.json``."""

    name: Text
    folder: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: Text | None
    files: Annotated[dict[FileName, FileEntry], Field(max_length=MAX_KEYS)]
    identity: Sha256
    family: FamilyName = "chatglm-6b"


class FamilyFile(Schema):
    """``family.json`` of a tokenizer folder."""

    family: FamilyName


class WeightIndex(Schema):
    """``*.index.json``: the file name of each tensor. Other keys are ignored."""

    model_config = ConfigDict(extra="ignore")
    weight_map: Annotated[dict[Text, Text], Field(min_length=1, max_length=100_000)]


class PublishedConfig(Schema):
    """Keys that the ``config.json`` of ChatGLM-6B and of its successors have in common."""

    model_type: Literal["chatglm"]
    prefix_projection: bool = False
    dtype: DtypeName | None = None
    torch_dtype: DtypeName | None = None
    use_cache: bool = True
    tie_word_embeddings: Literal[False] = False
    pre_seq_len: Annotated[int, Field(ge=0, le=2**16)] | None = None
    name_or_path_: Any = Field(default=None, alias="_name_or_path")
    architectures: Any = None
    auto_map: Any = None
    transformers_version: Any = None


class ModelConfig(PublishedConfig):
    """``config.json`` of ChatGLM-6B, as published or as transformers writes it.

    Keys in :data:`UNUSED_CONFIG_KEYS` are allowed but ignored. All other keys of transformers are rejected because they
    would change the loaded weights or the generated text (``attn_implementation``, ``quantization_config``,
    ``transformers_weights``, ``repetition_penalty``).
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**20)] = 1
    hidden_size: Annotated[int, Field(ge=1, le=2**16)] = 1
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    num_attention_heads: Annotated[int, Field(ge=0, le=1024)] = 1  # ChatGLMConfig has a better message for 0
    inner_hidden_size: Annotated[int, Field(ge=1, le=2**18)] = 1
    layernorm_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_sequence_length: Annotated[int, Field(ge=1, le=2**20)] = 1
    initializer_range: Annotated[float, Field(gt=0, le=10)] = 0.02
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None
    mask_token_id: TokenId | None = None
    gmask_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None
    position_encoding_2d: bool = True
    quantization_bit: Literal[0, 4, 8] = 0  # of the weight files; the loaded model is not quantized
    tokenizer_class: Text | None = None
    quantization_embeddings: Any = None


# Keys that only the config.json of successors has; model_type is "chatglm" for them too.
SUCCESSOR_KEYS = ("padded_vocab_size", "ffn_hidden_size", "multi_query_attention", "kv_channels")


class SuccessorConfig(PublishedConfig):
    """``config.json`` of ChatGLM2-6B or ChatGLM3-6B, as published.

    The keys that are ``Any`` are allowed but ignored: they name code, or act under torch 1 only.
    """

    padded_vocab_size: Annotated[int, Field(ge=1, le=2**20)]
    hidden_size: Annotated[int, Field(ge=1, le=2**16)]
    ffn_hidden_size: Annotated[int, Field(ge=1, le=2**18)]
    num_layers: Annotated[int, Field(ge=1, le=1024)]
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    multi_query_group_num: Annotated[int, Field(ge=1, le=1024)]
    kv_channels: Annotated[int, Field(ge=4, le=2**12, multiple_of=4)]
    seq_length: Annotated[int, Field(ge=1, le=2**22)]
    layernorm_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    add_qkv_bias: bool = True
    add_bias_linear: bool = False
    rmsnorm: bool = True
    post_layer_norm: bool = True
    multi_query_attention: bool = True
    apply_residual_connection_post_layernorm: bool = False
    fp32_residual_connection: bool = False
    rope_ratio: Annotated[float, Field(ge=1, le=10_000)] = 1
    eos_token_id: TokenId = 2
    pad_token_id: TokenId = 0
    quantization_bit: Literal[0] = 0
    attention_dropout: Literal[0] = 0
    hidden_dropout: Literal[0] = 0
    vocab_size: Any = None
    original_rope: Any = None
    bias_dropout_fusion: Any = None
    attention_softmax_in_fp32: Any = None
    apply_query_key_layer_scaling: Any = None
    classifier_dropout: Any = None


UNUSED_CONFIG_KEYS = {
    "name_or_path_",
    "architectures",
    "auto_map",
    "transformers_version",
    "quantization_bit",
    "quantization_embeddings",
    "tokenizer_class",
    "torch_dtype",
}


class AddedToken(Schema):
    """A special token with flags; ChatGLMTokenizer ignores the flags and uses its own."""

    type_: Any = Field(default=None, alias="__type")
    content: Annotated[str, Field(min_length=1, max_length=64)]
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    special: bool = True


SpecialToken = Annotated[str, Field(min_length=1, max_length=64)] | AddedToken
TokenIdKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
TOKENIZER_OPTIONS = ("do_lower_case", "remove_space", "clean_up_tokenization_spaces")
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "mask_token", "pad_token", "unk_token")


class TokenizerConfig(Schema):
    """``tokenizer_config.json`` of ChatGLM-6B, as published or as transformers writes it.

    Only :data:`SPECIAL_TOKEN_KEYS`, :data:`TOKENIZER_OPTIONS` and ``num_image_tokens`` are used. ``vocab_file`` is
    rejected, because it could name another vocabulary.
    """

    do_lower_case: bool = False
    remove_space: bool = False
    num_image_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = None
    clean_up_tokenization_spaces: bool = True
    bos_token: SpecialToken = "<sop>"
    eos_token: SpecialToken = "<eop>"
    mask_token: SpecialToken = "[MASK]"
    pad_token: SpecialToken = "<pad>"
    unk_token: SpecialToken = "<unk>"
    gmask_token: SpecialToken = "[gMASK]"
    eop_token: SpecialToken = "<eop>"
    end_token: SpecialToken = "</s>"
    added_tokens_decoder: Annotated[dict[TokenIdKey, AddedToken], Field(max_length=64)] = {}
    padding_side: Literal["left"] = "left"
    split_special_tokens: Literal[False] = False
    truncation_side: Literal["left", "right"] = "right"
    model_max_length: Annotated[float, Field(ge=1)] | None = None
    tokenizer_class: Text | None = None
    tokenizer_file: None = None
    name_or_path: Any = None
    auto_map: Any = None
    backend: Any = None
    chat_template: Any = None
    extra_special_tokens: Annotated[dict | list, Field(max_length=0)] | None = None
    additional_special_tokens: Annotated[list, Field(max_length=0)] | None = None
    is_local: Any = None
    local_files_only: Any = None
    processor_class: Any = None
    special_tokens_map_file: Any = None
    use_fast: Any = None


class SuccessorTokenizerConfig(Schema):
    """``tokenizer_config.json`` of ChatGLM2-6B or ChatGLM3-6B: no key but the options, which must be off, is used."""

    model_config = ConfigDict(extra="ignore")
    remove_space: Literal[False] = False
    do_lower_case: Literal[False] = False


# An adapter ----------------------------------------------------------------------------------------
Rank = Annotated[int, Field(ge=1, le=2**16)]


class PeftConfig(Schema):
    """``adapter_config.json``. Keys not listed here are peft features that must be off: null, false or empty."""

    task_type: Literal["CAUSAL_LM"]
    inference_mode: bool
    base_model_name_or_path: Text | None = None
    peft_version: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_disabled_features(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = cls.model_fields.keys()
        return {key: value for key, value in content.items() if key in known or not _is_disabled(value)}


def _is_disabled(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


class LoraConfigFile(PeftConfig):
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Annotated[float, Field(gt=0, le=2**20)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[LinearLayer], Field(min_length=1, max_length=8)]
    use_rslora: bool
    use_dora: bool
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True] = True
    megatron_core: Text | None = None  # only used with megatron_config, which must be off
    qalora_group_size: int | None = None  # only used with use_qalora, which must be off

    def attachment(self) -> dict:
        """Return the keyword arguments of :func:`models.adapters.attach_adapter`."""
        return {
            "rank": self.r,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "target_modules": sorted(self.target_modules),
            "rslora": self.use_rslora,
            "dora": self.use_dora,
        }


class PrefixConfigFile(PeftConfig):
    peft_type: Literal["PREFIX_TUNING"]
    num_virtual_tokens: Rank
    prefix_projection: bool
    encoder_hidden_size: Rank
    token_dim: Rank
    num_layers: Rank
    num_attention_heads: Rank
    num_transformer_submodules: Literal[1] = 1

    def attachment(self) -> dict:
        """Return the keyword arguments of :func:`models.adapters.attach_adapter`."""
        return {"prefix_tokens": self.num_virtual_tokens, "projection": self.prefix_projection}
