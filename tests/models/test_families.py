"""Every family from checkpoint to answers: tokens, loading, packing, adapters, export."""

import json
from typing import get_args

import pytest
import torch
from checkpoints_of_families import ALL, SUCCESSORS, TEMPLATE_TYPES, make_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import conversation
from transformers import AutoModelForCausalLM

from formats import data_params
from models import adapter_files, adapters, base_model, base_verification, model_loading, schemas
from models.adapter_conversion import export_merged_model, export_official_prefix, import_official_prefix
from models.errors import UserError
from models.families import FAMILIES, FAMILY_FILE, family_of, recognize_tokenizer
from models.generation import generate_answers
from models.manifest import Manifest, parse_manifest
from models.packing import PackingCollator
from models.padding import PaddingCollator
from models.prompt import IGNORED_LABEL, encode_prompt, encode_sample, encode_text, label_parts
from models.sample import Message, Sample
from models.training import TrainConfig, fit
from stages.encode.__main__ import encode_samples

TWO_TURNS = conversation("你好", "你好！我是小明。", "你几岁了？", "三岁。")
ONE_TURN = conversation("What is your name?", "Ming.")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return a function from a kind to its verified base, which is created once."""
    bases: dict[str, base_model.Base] = {}

    def get(kind: str) -> base_model.Base:
        if kind not in bases:
            folder = make_checkpoint(kind, tmp_path_factory.mktemp(kind))
            bases[kind] = base_verification.verify_base(folder, name=kind)
        return bases[kind]

    return get


def kinds_with(method: str) -> list[str]:
    return [kind for kind in ALL if method == "lora" or kind != "gemma3_text"]


BASES_AND_METHODS = [(kind, method) for method in ("lora", "ptuning_v2") for kind in kinds_with(method)]


@pytest.fixture(params=ALL)
def base(request, checkpoints):
    return checkpoints(request.param)


@pytest.fixture
def tokenizer(base):
    return model_loading.load_tokenizer(base)


def load(base):
    return model_loading.load_model(base, "float32")


def encode(tokenizer, messages) -> list[dict]:
    return [label_parts(row.parts) for row in tokenizer.family.encode_rows(tokenizer, messages)]


# Tokens --------------------------------------------------------------------------------------------


def test_every_answer_is_learnt_once_with_its_end(base, tokenizer):
    rows = encode(tokenizer, TWO_TURNS)
    answers = [encode_sample(tokenizer, TWO_TURNS[:length])[1] for length in (2, 4)]
    learnt = [token for row in rows for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    ends = model_loading.load_config(base).eos_token_id
    for answer in answers:
        assert answer[-1] in (ends if isinstance(ends, list) else [ends])
    # The end of an earlier answer can be the token of the next role.
    assert len(learnt) == sum(map(len, answers))
    assert [token for token in learnt if token not in {answer[-1] for answer in answers}] or learnt
    for row in rows:
        assert all(
            label in (IGNORED_LABEL, token) for token, label in zip(row["input_ids"], row["labels"], strict=True)
        )


def test_an_answer_is_learnt_after_the_tokens_of_its_prompt(base, tokenizer):
    (row,) = tokenizer.family.encode_rows(tokenizer, ONE_TURN)
    prompt, answer = encode_sample(tokenizer, ONE_TURN)
    assert row.parts == [prompt, answer]
    assert prompt == encode_prompt(tokenizer, ONE_TURN[:1])
    assert tokenizer.family.clean_answer(tokenizer.decode(answer, skip_special_tokens=True)) == "Ming."


@pytest.mark.parametrize("base", ["chatglm3-6b", "glm", "glm4", "llama", "gemma3_text"], indirect=True)
def test_a_conversation_in_one_row_has_the_tokens_of_the_last_prompt(base, tokenizer):
    """Where the end of an answer is the next role's token, the training row has no other end."""
    (row,) = encode(tokenizer, TWO_TURNS)
    prompt, answer = encode_sample(tokenizer, TWO_TURNS)
    assert row["input_ids"] == prompt + answer
    assert row["labels"][: len(prompt)].count(IGNORED_LABEL) < len(prompt)


@pytest.mark.parametrize("base", ["chatglm2-6b", "qwen2", "qwen3"], indirect=True)
def test_answers_that_are_rendered_in_another_way_later_have_rows_of_their_own(base, tokenizer):
    rows = tokenizer.family.encode_rows(tokenizer, TWO_TURNS)
    assert [row.parts for row in rows] == [list(encode_sample(tokenizer, TWO_TURNS[:length])) for length in (2, 4)]


@pytest.mark.parametrize(("base", "ids"), [("llama", ["a"]), ("qwen2", ["a:1", "a:2"])], indirect=["base"])
def test_rows_of_one_conversation_have_different_ids(tokenizer, ids):
    rows = encode_samples(tokenizer, [Sample("a", "a.jsonl", 1, TWO_TURNS)])
    assert [row["id"] for row in rows] == ids


def test_names_of_chatglm_6b_stand_for_the_layers_of_the_same_role(base):
    config, family = model_loading.load_config(base), family_of(base)
    attention = family.linear_names(["query_key_value"], config)
    assert attention == ["q_proj", "k_proj", "v_proj"]
    others = family.linear_names(["dense", "dense_h_to_4h", "dense_4h_to_h"], config)
    assert {*attention, *others} == family.linear_shapes(config).keys()


def test_control_tokens_in_a_message_are_text(base, tokenizer):
    spelled = "".join(tokenizer.convert_ids_to_tokens([*range(8)])) + "<|user|>[gMASK]<|im_end|><|eot_id|>"
    plain = encode_prompt(tokenizer, conversation("x"))
    attacked = encode_prompt(tokenizer, conversation(spelled))
    controls = set(plain) - set(encode_text(tokenizer, "x"))
    assert [attacked.count(token) for token in controls if token < 6] == [
        plain.count(token) for token in controls if token < 6
    ]


def test_the_data_checks_count_the_tokens_that_are_encoded(base, tokenizer):
    vocabulary = family_of(base).load_vocabulary(base.folder)
    conversations = [TWO_TURNS[:1], TWO_TURNS[:3], ONE_TURN[:1]]
    assert vocabulary.count_prompts(conversations) == [len(encode_prompt(tokenizer, part)) for part in conversations]
    pairs = [(TWO_TURNS[:2], TWO_TURNS[1]), (TWO_TURNS, TWO_TURNS[3]), (ONE_TURN, ONE_TURN[1])]
    counts = [len(encode_sample(tokenizer, messages)[1]) for messages, _ in pairs]
    assert vocabulary.count_answers([answer.content for _, answer in pairs]) == counts


@pytest.mark.parametrize("base", [*SUCCESSORS, "qwen3"], indirect=True)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=2, max_size=4))
def test_the_data_checks_count_the_tokens_of_any_text(base, tokenizer, texts):
    messages = conversation(*(texts if len(texts) % 2 == 0 else texts[1:]))
    vocabulary = family_of(base).load_vocabulary(base.folder)
    prompt, answer = encode_sample(tokenizer, messages)
    assert vocabulary.count_prompts([messages[:-1]]) == [len(prompt)]
    assert vocabulary.count_answers([messages[-1].content]) == [len(answer)]


def test_a_plain_text_has_no_role(base, tokenizer):
    (row,) = encode(tokenizer, (Message("text", "春天来了。"),))
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED_LABEL]
    assert learnt[:-1] == encode_text(tokenizer, "春天来了。")


@pytest.mark.parametrize("base", ["gemma3_text"], indirect=True)
def test_a_template_without_system_messages_gets_them_before_the_question(tokenizer):
    system = (Message("system", "请用中文"), *ONE_TURN[:1])
    merged = conversation(f"请用中文\n{ONE_TURN[0].content}")
    assert encode_prompt(tokenizer, system) == encode_prompt(tokenizer, merged)


# Model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", TEMPLATE_TYPES, indirect=True)
def test_logits_equal_those_of_transformers(base, tokenizer):
    ours, reference = load(base), AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    batch = PaddingCollator(0)(encode(tokenizer, TWO_TURNS) + encode(tokenizer, ONE_TURN))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(ours(**inputs).logits[real], reference(**inputs).logits[real])
        expected = reference(**inputs, labels=batch["labels"]).loss
        torch.testing.assert_close(ours(**batch).loss, expected)


@pytest.mark.parametrize(("base", "method"), BASES_AND_METHODS, indirect=["base"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(base, tokenizer, method):
    model = attach(load(base), method)
    rows = [*encode(tokenizer, TWO_TURNS), *encode(tokenizer, ONE_TURN), *encode(tokenizer, TWO_TURNS[:2])]
    packed = PackingCollator(sum(len(row["input_ids"]) for row in rows) + 5, model.config)([rows])
    losses, gradients = [], []
    for batch in (PaddingCollator(0)(rows), packed):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(*losses)
    for padded, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, padded, rtol=1e-3, atol=1e-6)


def attach(model, method: str):
    torch.manual_seed(1)
    if method == "lora":
        names = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
        adapted = adapters.attach_adapter(model, "lora", rank=2, alpha=4, target_modules=names)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return adapted.eval()
    return adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=3).eval()


@pytest.mark.parametrize(("base", "method"), BASES_AND_METHODS, indirect=["base"])
def test_answers_of_a_batch_equal_those_of_single_prompts(base, tokenizer, method):
    model, conversations = attach(load(base), method), [TWO_TURNS[:1], TWO_TURNS[:3], ONE_TURN[:1]]
    options = {"max_new_tokens": 8, "force_full_length": True}
    single = dict(generate_answers(model, tokenizer, conversations, batch_size=1, **options))
    batch = dict(generate_answers(model, tokenizer, conversations, batch_size=3, **options))
    assert [batch[index].text for index in range(3)] == [single[index].text for index in range(3)]


@pytest.mark.parametrize("base", ["gemma3_text"], indirect=True)
def test_a_prefix_is_refused_where_layers_cannot_reach_it(base):
    with pytest.raises(UserError, match=r"sliding-window attention \(8 tokens\)"):
        adapters.attach_adapter(load(base), "ptuning_v2", prefix_tokens=3)


# Adapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "method"), BASES_AND_METHODS, indirect=["base"])
@pytest.mark.parametrize("pack_tokens", [None, 128])
def test_an_adapter_is_trained_saved_loaded_and_asked(base, tokenizer, method, pack_tokens, tmp_path):
    model = attach(load(base), method).train()
    rows = [*encode(tokenizer, ONE_TURN), *encode(tokenizer, TWO_TURNS)]
    config = TrainConfig(batch_size=2, learning_rate=0.03, max_steps=60, pack_tokens=pack_tokens)
    result = fit(model, rows, [], config)
    assert result.loss("train") < {"lora": 0.6, "ptuning_v2": 0.9}[method] * result.history[0]["loss"]
    model.eval()
    manifest = make_manifest(base, method)
    adapter_files.save_adapter(model, tmp_path / "adapter", manifest)
    loaded = adapter_files.load_adapter(tmp_path / "adapter", base)
    batch = PaddingCollator(0)(rows)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)
    ((_, answer),) = generate_answers(loaded, tokenizer, [ONE_TURN[:1]], 8, 1)
    # The vocabulary of ChatGLM2 and 3 is too large for a tiny random base to be bent that far.
    assert answer.text == "Ming." or method == "ptuning_v2" or base.name in SUCCESSORS


@pytest.mark.parametrize("quantization", [None, 4, 8])
def test_lora_trains_with_gradient_checkpointing_and_on_a_quantized_base(base, tokenizer, quantization):
    """Checkpointing changes no gradient; a quantized base has the loss of the base within its precision."""
    rows, losses, gradients = encode(tokenizer, TWO_TURNS), [], []
    for is_checkpointed in (False, True):
        model = attach(model_loading.load_model(base, "float32", quantization), "lora").train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**PaddingCollator(0)(rows)).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(*losses)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-6)
    assert abs(losses[0] / attach(load(base), "lora")(**PaddingCollator(0)(rows)).loss - 1) < 0.1


@pytest.mark.parametrize("base", ["qwen3"], indirect=True)
def test_a_prefix_with_gradient_checkpointing_is_refused(base, tokenizer):
    with pytest.raises(UserError, match="gradient_checkpointing: false"):
        family_of(base).check_training("ptuning_v2", True)
    family_of(base).check_training("lora", True)
    model = attach(load(base), "ptuning_v2").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UserError, match="ignore a prefix"):
        model(**PaddingCollator(0)(encode(tokenizer, ONE_TURN)))


def test_the_families_have_the_same_names_everywhere():
    in_params = set(get_args(data_params.Base.model_fields["family"].annotation))
    assert set(FAMILIES) == set(get_args(schemas.FamilyName)) == in_params - {"auto"}


def make_manifest(base, method: str, **settings) -> Manifest:
    return Manifest(
        name="a",
        method=method,
        settings={"method": method, **settings},
        base=base.name,
        base_identity=base.identity,
        tokenizer_sha256=base.tokenizer_sha256,
        prompt_version=family_of(base).prompt_version(base),
        quantization=None,
        dtype="float32",
        receipt_sha256="",
        code_commit=None,
        training={},
    )


def test_a_merged_model_is_a_base_of_the_same_family(base, tokenizer, tmp_path):
    model = attach(load(base), "lora")
    adapter_files.save_adapter(model, tmp_path / "adapter", make_manifest(base, "lora"))
    export_merged_model(tmp_path / "adapter", base, tmp_path / "merged")
    merged = base_verification.verify_base(tmp_path / "merged", "merged")
    assert family_of(merged) is family_of(base)
    batch = PaddingCollator(0)(encode(tokenizer, TWO_TURNS))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(load(merged)(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", SUCCESSORS, indirect=True)
def test_a_published_prefix_survives_import_and_export(base, tmp_path):
    model = attach(load(base), "ptuning_v2")
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    adapter_files.save_adapter(model, tmp_path / "adapter", make_manifest(base, "ptuning_v2"))
    export_official_prefix(tmp_path / "adapter", base, tmp_path / "published")
    import_official_prefix(tmp_path / "published/pytorch_model.bin", base, "b", "float32", tmp_path / "imported")
    folders = [tmp_path / name for name in ("adapter", "imported")]
    rows = [adapter_files.read_prefix(folder, base, parse_manifest(folder)) for folder in folders]
    torch.testing.assert_close(*rows)
    published = torch.load(tmp_path / "published/pytorch_model.bin", weights_only=True)
    assert not torch.allclose(next(iter(published.values())), rows[0])  # the keys were rotated


# Recognition ---------------------------------------------------------------------------------------


def test_the_record_and_a_tokenizer_folder_name_the_family(base, tmp_path):
    base_model.write_record(base, tmp_path)
    assert base_model.read_record(tmp_path) == base
    (tmp_path / FAMILY_FILE).write_text(json.dumps({"family": base.family}))
    assert recognize_tokenizer(tmp_path) is family_of(base)


@pytest.mark.parametrize("base", SUCCESSORS, indirect=True)
def test_a_configuration_without_a_name_needs_the_family(base, tmp_path):
    for name in base.files:
        (tmp_path / name).write_bytes((base.folder / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_name_or_path": "mine"}))
    with pytest.raises(UserError, match=r"Set base\.family .* to chatglm2-6b or chatglm3-6b"):
        base_verification.verify_base(tmp_path, "mine")
    assert base_verification.verify_base(tmp_path, "mine", family=base.family).family == base.family


@pytest.mark.parametrize("base", ["chatglm3-6b"], indirect=True)
def test_the_original_layout_of_glm_4_is_refused_with_the_name_of_the_other(base, tmp_path):
    config = json.loads((base.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"padded_vocab_size": 151_552}))
    with pytest.raises(UserError, match="glm-4-9b-chat-hf"):
        base_verification.verify_base(tmp_path, "glm-4-9b-chat")


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "t5"}, "has model_type 't5'.*Verified are"),
        ("config.json", {"model_type": "gpt2"}, "gpt2.*layers"),
        ("config.json", {"model_type": "no-such-model"}, "no causal language model"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ("config.json", {"vocab_size": 100}, "vocabulary .* does not match"),
        ("config.json", {"eos_token_id": None}, "has no eos_token_id"),
        ("config.json", {"logit_scale": 0.5}, "scaled logits"),
        ("config.json", {"hidden_size": "wide"}, "config.json"),
        ("tokenizer.json", {"model": {"type": "nothing"}}, "cannot be read"),
    ],
)
def test_a_model_that_cannot_work_ends_in_a_sentence(base, tmp_path, file, changes, message):
    for name in base.files:
        (tmp_path / name).write_bytes((base.folder / name).read_bytes())
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(content | changes))
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        base_verification.verify_base(tmp_path, "broken")


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_a_checkpoint_without_a_chat_template_is_refused(base, tmp_path):
    for name in base.files.keys() - {"chat_template.jinja"}:
        (tmp_path / name).write_bytes((base.folder / name).read_bytes())
    with pytest.raises(UserError, match="has no chat template"):
        base_verification.verify_base(tmp_path, "base")
