import json
import sys
import types

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

from models import adapters
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from models.chatglm.masks import derive_position_ids
from models.labels import find_label_indices
from models.prompt import IGNORED_LABEL

CONTEXTS = [[40, 41, 42, 43, 44], [50, 51], [60, 61, 62]]
ANSWERS = [[70, 71], [72, 73, 74, 75], [76]]


def make_rows(config) -> list[tuple[list[int], list[int]]]:
    """Return token ids and labels of three rows of different lengths."""
    rows = []
    for context, answer in zip(CONTEXTS, ANSWERS, strict=True):
        prompt = [*context, config.gmask_token_id, config.bos_token_id]
        rows.append((prompt + answer, [IGNORED_LABEL] * len(prompt) + answer))
    return rows


def make_batch(rows, config, side: str) -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in rows)

    def pad(values, padding_value):
        padding = [padding_value] * (length - len(values))
        return padding + values if side == "left" else values + padding

    return {
        "input_ids": torch.tensor([pad(ids, config.pad_token_id) for ids, _ in rows]),
        "labels": torch.tensor([pad(labels, IGNORED_LABEL) for _, labels in rows]),
        "attention_mask": torch.tensor([pad([1] * len(ids), 0) for ids, _ in rows]),
    }


@pytest.fixture(params=["base", "ptuning_v2"])
def any_model(request, model):
    if request.param == "base":
        return model
    torch.manual_seed(0)
    return adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=4).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_logits_and_loss_of_single_rows(any_model, side):
    config = any_model.config
    rows = make_rows(config)
    batch = make_batch(rows, config, side)
    batch_logits = any_model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits
    losses, counts = [], []
    for index, (ids, labels) in enumerate(rows):
        single = any_model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        row_logits = batch_logits[index, -len(ids) :] if side == "left" else batch_logits[index, : len(ids)]
        torch.testing.assert_close(row_logits, single.logits[0], atol=1e-5, rtol=0)
        losses.append(single.loss * len(ANSWERS[index]))
        counts.append(len(ANSWERS[index]))
    torch.testing.assert_close(any_model(**batch).loss, sum(losses) / sum(counts), atol=1e-5, rtol=0)


def test_gradients_of_a_padded_batch_are_finite(any_model):
    any_model.train().requires_grad_(True)
    batch = make_batch(make_rows(any_model.config), any_model.config, "left")
    any_model(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in any_model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": False, "use_cache": False}])
def test_generation_of_a_left_padded_batch_equals_single_rows(any_model, options):
    config = any_model.config
    prompts = [[*context, config.gmask_token_id, config.bos_token_id] for context in CONTEXTS]
    batch = make_batch([(prompt, prompt) for prompt in prompts], config, "left")
    options = options | {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": config.pad_token_id}
    outputs = any_model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)[:, -6:]
    for index, prompt in enumerate(prompts):
        assert any_model.generate(torch.tensor([prompt]), **options)[0, -6:].tolist() == outputs[index].tolist()


def test_logits_with_cache_equal_those_without(any_model):
    config = any_model.config
    prompt = torch.tensor([[*CONTEXTS[0], config.gmask_token_id, config.bos_token_id]])
    options = {"max_new_tokens": 5, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    cached = any_model.generate(prompt, **options)
    assert cached.sequences.tolist() == any_model.generate(prompt, use_cache=False, **options).sequences.tolist()
    expected = any_model(input_ids=cached.sequences[:, :-1]).logits[0, -5:]
    torch.testing.assert_close(torch.cat(cached.logits), expected, atol=1e-5, rtol=0)


def test_streamed_and_returned_text_are_equal_for_a_seed(model, tokenizer):
    prompt = tokenizer("你好", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 50}
    texts = []
    for streamer in (None, TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)):
        torch.manual_seed(7)
        ids = model.generate(**prompt, streamer=streamer, **options)[0, prompt["input_ids"].shape[1] :]
        texts.append("".join(streamer) if streamer else tokenizer.decode(ids, skip_special_tokens=True))
    assert texts[0] == texts[1] != ""


def test_the_loss_computes_logits_of_labelled_tokens_only(model):
    num_tokens = []
    model.lm_head.requires_grad_(True)  # FrozenHeadLoss does not call a frozen head
    model.lm_head.register_forward_hook(lambda module, inputs, output: num_tokens.append(inputs[0].shape[:-1].numel()))
    batch = make_batch(make_rows(model.config), model.config, "right")
    output = model(**batch)
    assert num_tokens == [sum(map(len, ANSWERS))]
    assert output.logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    assert num_tokens[1:] == [batch["input_ids"].numel()]  # computed when first read


@pytest.mark.parametrize("checkpointing", [False, True])
def test_label_indices_keep_loss_and_gradients_and_shorten_the_last_layer(model, checkpointing):
    shapes = []
    last_mlp = model.transformer.layers[-1].mlp
    last_mlp.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    batch = make_batch(make_rows(model.config), model.config, "right")
    model.train().requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for label_indices in (None, find_label_indices(batch["labels"])):
        model.zero_grad()
        output = model(**batch, label_indices=label_indices, use_cache=False)
        output.loss.backward()
        gradients.append({"loss": output.loss} | {name: p.grad for name, p in model.named_parameters()})
    assert output.logits is None
    assert shapes[-1] == (1, sum(map(len, ANSWERS)), model.config.hidden_size)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_for_half_precision_weights(model, dtype):
    batch = make_batch(make_rows(model.config), model.config, "right")
    expected = model(**batch).loss
    loss = model.to(dtype)(**batch).loss
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 0.05


def test_gradient_checkpointing_keeps_gradients(any_model):
    batch = make_batch(make_rows(any_model.config), any_model.config, "right")
    gradients = []
    for checkpointing in (False, True):
        any_model.train().requires_grad_(True)
        any_model.zero_grad()
        if checkpointing:
            any_model.gradient_checkpointing_enable({"use_reentrant": False})
        any_model(**batch, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in any_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_num_items_in_batch_averages_the_loss_over_several_calls(model):
    rows = make_rows(model.config)
    num_labelled = sum(map(len, ANSWERS))
    losses = [model(**make_batch([row], model.config, "right"), num_items_in_batch=num_labelled).loss for row in rows]
    torch.testing.assert_close(sum(losses), model(**make_batch(rows, model.config, "right")).loss)


def test_inputs_embeds_replace_input_ids(model):
    ids = torch.tensor([make_rows(model.config)[0][0]])
    embeddings = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=embeddings, position_ids=derive_position_ids(ids, model.config)).logits
    torch.testing.assert_close(logits, model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="position_ids"):
        model(inputs_embeds=embeddings)


def test_output_hidden_states_and_tuples(model):
    ids = torch.tensor([make_rows(model.config)[0][0]])
    output = model(input_ids=ids, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_layers + 1
    loss, logits, *_ = (model(input_ids=ids, labels=ids, return_dict=False)[0], *model(input_ids=ids).to_tuple())
    assert loss.dim() == 0
    assert logits.shape[-1] == model.config.vocab_size


# Official checkpoints ------------------------------------------------------------------------------

PUBLISHED_AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def write_published_checkpoint(model, folder, base_folder) -> None:
    """Write a checkpoint in the published layout: .bin shards in half precision, and code files."""
    state = {name: value.half() for name, value in model.state_dict().items()}
    state["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4).half()
    names = sorted(state)
    weight_map = {}
    for number, shard in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in shard}, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = {key: getattr(model.config, key) for key in ("vocab_size", "hidden_size", "num_layers", "use_cache")}
    config |= {f"{name}_token_id": getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config |= {"mask_token_id": model.config.mask_token_id, "gmask_token_id": model.config.gmask_token_id}
    config |= {"num_attention_heads": 2, "inner_hidden_size": 128, "layernorm_epsilon": 1e-5}
    config |= {"model_type": "chatglm", "torch_dtype": "float16", "position_encoding_2d": True}
    config |= {"architectures": ["ChatGLMModel"], "auto_map": PUBLISHED_AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_config = json.loads((base_folder / "tokenizer_config.json").read_text())
    tokenizer_config["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "ice_text.model").write_bytes((base_folder / "ice_text.model").read_bytes())
    for code in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{code}.py").write_text("raise SystemExit('code of a checkpoint was run')")


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["default", "trust_remote_code"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
def test_an_official_checkpoint_loads_without_its_code(model, base_folder, tmp_path, auto, trust):
    write_published_checkpoint(model, tmp_path, base_folder)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True, **trust)
    assert type(loaded) is ChatGLMForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path, **trust)) is ChatGLMConfig
    assert type(AutoTokenizer.from_pretrained(tmp_path, **trust)) is ChatGLMTokenizer
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.dtype == torch.float16
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half()), name
    assert not any(module.startswith("transformers_modules") for module in sys.modules)


def test_a_saved_model_loads_with_the_same_logits(model, base_folder, tmp_path):
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    ids = torch.tensor([make_rows(model.config)[0][0]])
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_special_ids_of_the_vocabulary_with_image_tokens():
    config = ChatGLMConfig(vocab_size=150528, hidden_size=16, num_layers=1, num_attention_heads=2, inner_hidden_size=32)
    ids = [config.mask_token_id, config.gmask_token_id, config.bos_token_id, config.eos_token_id, config.pad_token_id]
    assert ids == [150000, 150001, 150004, 150005, 20003]
    model = ChatGLMForConditionalGeneration(config)
    assert model(torch.tensor([[20005, 150001, 150004]])).logits.shape[-1] == 150528


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"padded_vocab_size": 65024}, "successor"),
        ({"position_encoding_2d": False}, "two-dimensional"),
        ({"quantization_bit": 4}, "dequantizes"),
    ],
)
def test_unsupported_configurations_raise_value_error(keys, message):
    with pytest.raises(ValueError, match=message):
        ChatGLMConfig(**keys)


@pytest.mark.parametrize("supported", [True, False])
def test_triton_kernels_are_used_only_for_supported_heads(monkeypatch, supported):
    """Tile sizes of the kernels are powers of two; 12 channels per head are allowed but no power of two."""
    from models import chatglm
    from models.chatglm import modeling_chatglm

    head_dims = []
    kernels = types.SimpleNamespace(
        is_supported=lambda head_dim: head_dims.append(head_dim) or supported,
        split_and_rotate=lambda mixed, *angles: "kernel result",
    )
    monkeypatch.setattr(chatglm, "rotary_triton", kernels, raising=False)
    monkeypatch.setitem(sys.modules, "models.chatglm.rotary_triton", kernels)
    mixed = torch.randn(1, 3, 2, 36)
    positions = torch.arange(3).expand(1, 2, 3)
    rotary = modeling_chatglm.rotary_embedding(positions, 6, torch.float32)
    result = modeling_chatglm.split_and_rotate(mixed, *rotary, fused=True)
    assert head_dims == [12]
    if supported:
        assert result == "kernel result"
    else:
        expected = modeling_chatglm.split_and_rotate(mixed, *rotary, fused=False)
        assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))
