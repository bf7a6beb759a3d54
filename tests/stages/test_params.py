import json
from pathlib import Path

import pytest
import yaml
from shared_data import ROOT

from formats import params_schema, params_section, training_params
from models.errors import UserError
from stages import params as stage_params

PARAMETER_SETS = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]


def write(tmp_path, change):
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", PARAMETER_SETS, ids=lambda path: path.stem)
def test_supplied_parameter_sets_are_valid(path):
    loaded = params_schema.load(path)
    assert set(loaded.evaluate.models) == {"base", *loaded.adapters}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "q"}, "question and answer belong together"),
        ({"question": "q", "answer": "a", "text": "t"}, "but not several of them"),
        ({"system": "s"}, "beside history and system"),
        ({"messages": "m", "history": "h"}, "history belongs to question and answer"),
        ({"text": "t", "system": "s"}, "a document has no system text"),
        ({"prompt": "q"}, "is not a known key"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        params_schema.load(write(tmp_path, lambda content: content["ingest"].update(columns=columns)))


def test_chatglm_6b_sets_have_the_published_settings():
    lora = params_schema.load(ROOT / "params/chatglm-6b-lora.yaml")
    assert (lora.base.model, lora.encode.max_prompt_tokens, lora.encode.max_answer_tokens) == (
        "THUDM/chatglm-6b",
        230,
        230,
    )
    adapter = lora.adapters["lora"]
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.batch_size) == (4, 32, 0.1, 2)
    assert (adapter.learning_rate, adapter.epochs) == (2e-4, 250)
    ptuning = params_schema.load(ROOT / "params/chatglm-6b-ptuning_v2.yaml")
    adapter = ptuning.adapters["ptuning_v2"]
    assert (adapter.prefix_tokens, adapter.quantization, adapter.batch_size, adapter.epochs) == (128, 4, 1, 500)
    assert (ptuning.encode.max_prompt_tokens, ptuning.encode.max_answer_tokens) == (300, 300)


def test_adding_an_adapter_takes_one_entry(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    entry = "  lora_wide: {method: lora, rank: 32, alpha: 64, learning_rate: 1e-3, epochs: 1, batch_size: 8}\n"
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("\ntrain:", f"\n{entry}\ntrain:".replace("\n\n", "\n")), encoding="utf-8")
    loaded = params_schema.load(path)
    assert set(loaded.adapters) == {"lora", "ptuning_v2", "lora_wide"} == set(loaded.evaluate.models) - {"base"}
    assert loaded.adapters["lora_wide"].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["adapters"]["lora"].update(rnak=4), r"adapters\.lora\.rnak is not a known key"),
        (lambda c: c.update(trian={}), "trian is not a known key"),
        (
            lambda c: c["adapters"]["lora"].update(pack_tokens=1024),
            r"adapters\.lora\.pack_tokens is 1024, but must be at least 2048",
        ),
        (lambda c: c["adapters"]["lora"].update(pack_tokens=8000), "multiple of 128"),
        (
            lambda c: (c["train"].update(precision="fp8"), c["adapters"]["lora"].update(quantization=4)),
            "exclude each other",
        ),
        (lambda c: c["train"].update(precision="fp8"), "precision fp8 and base.dtype float32 exclude each other"),
        (lambda c: c["adapters"]["lora"].update(rank="many"), "rank"),
        (lambda c: c["adapters"]["lora"].update(rank=0), "greater than or equal to 1"),
        (lambda c: c["adapters"]["lora"].update(method="magic"), "magic"),
        (lambda c: c["adapters"]["lora"].pop("learning_rate"), "learning_rate"),
        (lambda c: c["validate"].update(eval_share=1.5), "eval_share"),
        (lambda c: c.pop("encode"), "encode"),
        (lambda c: c["adapters"]["lora"].update(rnak=c["adapters"]["lora"].pop("rank")), "rnak is not a known key"),
        (lambda c: c["adapters"]["lora"].update(target_modules=[]), "target_modules"),
        (lambda c: c["adapters"]["lora"].update(epochs=float("inf")), "epochs"),
        (lambda c: c["adapters"]["lora"].update(rank=True), "rank"),
        (lambda c: c["base"]["tiny"].update(heads=5), "multiple of 4"),
        (lambda c: c["train"].update(evaluations=1), "evaluations"),
        (lambda c: c["train"].update(seed=-1), "seed"),
        (lambda c: c["ingest"].update(source=""), "source"),
        (lambda c: c["adapters"].update(data=c["adapters"]["lora"]), "'data' is a reserved name"),
        (lambda c: c["evaluate"]["models"].pop("lora"), "evaluate.models"),
        (lambda c: c["adapters"].update(base=c["adapters"]["lora"]), "'base'"),
    ],
)
def test_invalid_params_raise_one_sentence_with_the_key(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        params_schema.load(write(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_missing_file_and_invalid_yaml(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        params_schema.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("base: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        params_schema.load(tmp_path / "params.yaml")


def test_resolved_params_contain_defaults_and_attachments():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    written = params_schema.resolve(params_schema.Params.model_validate(content))
    assert written["train"]["logs"] == 200  # left out of params.yaml
    assert written["validate"]["checks"]["parseable"] == {"severity": "quarantine", "max_bytes": 1_000_000}
    assert written["adapters"]["lora"]["attachment"]["rank"] == content["adapters"]["lora"]["rank"]
    content["train"]["logs"] = 200
    assert params_schema.resolve(params_schema.Params.model_validate(content)) == written
    content["adapters"]["lora"]["chosen_from"] = 20  # of promotion: an adapter is not trained again because of it
    assert params_schema.resolve(params_schema.Params.model_validate(content)) == written
    content["train"]["logs"] = 201
    assert params_schema.resolve(params_schema.Params.model_validate(content)) != written


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fp8_accepts_a_16_bit_base(tmp_path, dtype):
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["train"]["precision"], content["base"]["dtype"] = "fp8", dtype
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert params_schema.load(tmp_path / "params.yaml").train.precision == "fp8"


def subclasses_of(parent: type) -> list[type]:
    children = parent.__subclasses__()
    return children + [grandchild for child in children for grandchild in subclasses_of(child)]


def test_every_field_has_a_description():
    sections = subclasses_of(params_section.Section)
    assert training_params.Lora in sections
    fields = [(part.__name__, name, field) for part in sections for name, field in part.model_fields.items()]
    assert [(part, name) for part, name, field in fields if not field.description] == []


@pytest.mark.parametrize(
    ("source", "probes", "expected"),
    [
        ("data/demo/raw", "data/demo/probes.jsonl", "data/demo/probes.jsonl"),
        ("data/mine.jsonl", "data/demo/probes.jsonl", None),
        ("data/mine.jsonl", "data/probes", "data/probes"),
        ("/elsewhere/rows.jsonl", "/elsewhere/probes.jsonl", "/elsewhere/probes.jsonl"),
        ("data/demo/raw", "data/no_probes", None),
        ("data/demo/raw", "./data/no_probes/", None),
    ],
)
def test_the_demo_probes_count_for_the_demo_only(tmp_path, source, probes, expected):
    def change(content):
        content["ingest"]["source"], content["evaluate"]["probes"] = source, probes

    params = params_schema.load(write(tmp_path, change))
    assert params.probes == (expected and Path(expected))
    assert params_schema.resolve(params)["evaluate"]["probes"] == expected


def test_null_probes_are_refused_with_the_folder_that_means_none(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.probes: null is not a path; write data/no_probes"):
        params_schema.load(write(tmp_path, lambda content: content["evaluate"].update(probes=None)))


def test_params_says_that_the_demo_probes_are_left_out(tmp_path, monkeypatch, caplog):
    out = tmp_path / "params.json"
    monkeypatch.setattr("sys.argv", ["params", "--out", str(out)])
    monkeypatch.chdir(write(tmp_path, lambda content: content["ingest"].update(source="rows.jsonl")).parent)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "data/demo/general").mkdir(parents=True)
    with caplog.at_level("INFO"):
        stage_params.main()
    assert "the demo's probes (evaluate.probes) are left out" in caplog.text
    assert json.loads(out.read_text())["evaluate"]["probes"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnak": 16}, "adapters.lora.rnak is not a known key; did you mean rank?"),
        ({"qqqq": 16}, "adapters.lora.qqqq is not a known key; check its spelling."),
        ({"rank": "sixteen"}, "adapters.lora.rank: .*, not 'sixteen'"),
        ({"method": "loar"}, "adapters.lora.method: 'loar' is not one of 'lora', 'ptuning_v2', 'full'"),
    ],
)
def test_messages_name_key_and_value(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        params_schema.load(write(tmp_path, lambda content: content["adapters"]["lora"].update(change)))


@pytest.mark.parametrize(("section", "key"), [("ingest", "source"), ("ingest", "general"), ("evaluate", "probes")])
def test_missing_data_are_named_with_their_key(tmp_path, monkeypatch, section, key):
    params = params_schema.load(write(tmp_path, lambda content: content[section].update({key: "data/other"})))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"params.yaml: {section}.{key}: data/other does not exist"):
        stage_params.check_paths(params)
    stage_params.check_paths(params_schema.load(ROOT / "params.yaml"))
    monkeypatch.chdir(tmp_path)
    for path in ("data/demo/raw", "data/demo/general", "data/demo/probes.jsonl"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "data/other.dvc").touch()  # DVC fetches it
    stage_params.check_paths(params)
