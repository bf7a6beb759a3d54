"""Configuration of ChatGLM-6B, with the keys of the published config.json."""

from collections.abc import Container

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from models.schemas import SUCCESSOR_KEYS

TEXT_VOCAB_SIZE = 130_528
IMAGE_TOKENS = 20_000  # precede the text tokens in the first generation of checkpoints


def image_tokens_of(vocab_size: int) -> int:
    """Return the number of image tokens before the text tokens: 20,000 in a vocabulary of 150,528, else 0."""
    return IMAGE_TOKENS if vocab_size == TEXT_VOCAB_SIZE + IMAGE_TOKENS else 0


def refuse_successor(keys: Container[str]) -> None:
    """Check the keys of a config.json.

    Raises:
        ValueError: they are those of ChatGLM2-6B or a later model.
    """
    if successor_keys := [key for key in SUCCESSOR_KEYS if key in keys]:
        raise ValueError(
            f"This config.json describes a successor of ChatGLM-6B (it has {', '.join(successor_keys)}). "
            "Use a checkpoint in the layout of ChatGLM-6B."
        )


@strict
class ChatGLMConfig(PreTrainedConfig):
    """Configuration of a ChatGLM-6B checkpoint.

    Args:
        vocab_size: rows of the embedding; 130,528, or 150,528 in checkpoints with image tokens.
        hidden_size: width of the residual stream.
        num_layers: number of blocks.
        num_attention_heads: attention heads per block, of ``hidden_size // num_attention_heads`` channels. The first
            half of a head's channels is rotated by position, the second by block position.
        inner_hidden_size: width of the feed-forward layer.
        layernorm_epsilon: added to the variance in every layer norm.
        max_sequence_length: maximum length in training, in tokens.
        bos_token_id: ``<sop>``, the start of the answer; the context ends right before it.
        eos_token_id: ``<eop>``, the end of the answer.
        gmask_token_id, mask_token_id: ``[gMASK]`` and ``[MASK]``; the answer keeps the position of the first of them.
            The ids default to those of the vocabulary's generation.
        position_encoding_2d: must be true, as in every published checkpoint.
        pre_seq_len, prefix_projection: keys of published P-Tuning v2 checkpoints. They are kept; peft implements the
            prefix.
        quantization_bit: must be 0: ``from_pretrained`` cannot read weights that the authors quantized;
            :mod:`models.model_loading` can.
        tokenizer_class: name by which AutoTokenizer finds ours.

    Raises:
        ValueError: the keys describe another architecture (ChatGLM2, ChatGLM3, GLM-4), or an unsupported value above.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = TEXT_VOCAB_SIZE
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pad_token_id: int | None = None
    position_encoding_2d: bool = True
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    quantization_bit: int = 0
    tokenizer_class: str | None = "ChatGLMTokenizer"

    def __post_init__(self, **kwargs):
        refuse_successor(kwargs)
        if not self.position_encoding_2d:
            raise ValueError("position_encoding_2d is false; only two-dimensional positions are supported.")
        if self.quantization_bit:
            raise ValueError(
                f"The checkpoint's weights are quantized to {self.quantization_bit} bits; load it by "
                "models.model_loading.load_model, which dequantizes them."
            )
        if self.num_attention_heads < 1 or self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4 * num_attention_heads, "
                f"which is {self.num_attention_heads}."
            )
        self._set_default_token_ids()
        kwargs.pop("auto_map", None)  # names code in the checkpoint, which never runs here
        super().__post_init__(**kwargs)

    def _set_default_token_ids(self) -> None:
        offset = image_tokens_of(self.vocab_size)
        published = {"mask": 130_000, "gmask": 130_001, "bos": 130_004, "eos": 130_005, "pad": 3}
        for name, token_id in published.items():
            if getattr(self, f"{name}_token_id") is None:
                setattr(self, f"{name}_token_id", token_id + offset)
