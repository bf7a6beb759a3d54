"""Tiny random checkpoints of every family, in the file layout of the published ones."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from shared_data import developer_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from models.families.successor_weights import publish_weights

SUCCESSORS = ("chatglm2-6b", "chatglm3-6b")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / num_attention_heads, as in Qwen3
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that an adapter alone can lower the loss
}
CHATML = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{%- if enable_thinking is defined and not enable_thinking %}
<think>

</think>

{%- endif %}
{% endif -%}"""
GLM = """[gMASK]<sop>{%- for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
LLAMA = """{{ bos_token }}{%- for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{%- endfor -%}
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""
GEMMA = """{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}
{%- for message in messages -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}"""
# Model type: chat template, special tokens, and the tokens that end an answer.
TEMPLATES = {
    "glm": (GLM, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"), (5, 2, 4)),
    "glm4": (GLM, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"), (5, 2, 4)),
    "llama": (LLAMA, ("<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), (4,)),
    "qwen2": (CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (2, 0)),
    "qwen3": (CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (2, 0)),
    "gemma3_text": (GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), (1, 4)),
}
TEMPLATE_TYPES = tuple(TEMPLATES)
ALL = (*SUCCESSORS, *TEMPLATE_TYPES)
_CORPUS = [
    "你好，我是小明。",
    "What is your name? My name is Ming.",
    "春天来了，花开了。",
    "user assistant system model",
]


def make_checkpoint(kind: str, folder: Path) -> Path:
    """Write a checkpoint of one of :data:`ALL` into a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return _make_successor(kind, folder) if kind in SUCCESSORS else _make_template_model(kind, folder)


def _make_successor(kind: str, folder: Path) -> Path:
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copyfile(developer_file(f"reference/{kind}/{name}"), folder / name)
    published = json.loads((folder / "config.json").read_text()) | {
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_layers": 3,
        "num_attention_heads": 4,
        "kv_channels": 16,
        "multi_query_group_num": 2,
        "seq_length": 512,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(published))
    config = CONFIG_MAPPING["glm"](
        **SIZES, vocab_size=published["padded_vocab_size"], attention_bias=True, pad_token_id=0
    )
    save_file(publish_weights(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)), folder / "model.safetensors")
    return folder


def _make_template_model(kind: str, folder: Path) -> Path:
    template, special, ends = TEMPLATES[kind]
    vocab_size = _train_tokenizer(special, folder)
    tokens = {"eos_token": special[ends[0]], "pad_token": special[0]}
    if starts := {"<s>", "<bos>"}.intersection(special):
        (tokens["bos_token"],) = starts
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "chat_template.jinja").write_text(template)
    options = {"vocab_size": vocab_size, "eos_token_id": list(ends), "pad_token_id": 0, "bos_token_id": None}
    if kind == "gemma3_text":
        options |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    if kind in ("qwen3", "gemma3_text"):
        options["tie_word_embeddings"] = True
    config = CONFIG_MAPPING[kind](**SIZES | options)
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).save_pretrained(folder)
    return folder


def _train_tokenizer(special: tuple[str, ...], folder: Path) -> int:
    """Write a byte-level BPE tokenizer, and return the number of its tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s+\S+|\S+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()
