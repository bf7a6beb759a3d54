"""Steps of a retraining in a real git and DVC repository with two small stages in place of training runs."""

import shutil

import pytest
import yaml
from shared_data import ROOT

from models.errors import DataBlocked, UserError
from models.storage import write_json
from pipelines import dvc, promotion, registry, retraining
from pipelines.clone import Clone
from pipelines.promotion import PromotionResult

TRAIN = "mkdir -p models/weights/{name} && cat rank > models/weights/{name}/adapter_model.safetensors"


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Clone:
    """Return a repository with stages for adapters lora and ptuning_v2; it is not the working directory."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    clone = Clone(tmp_path / "clone", str(tmp_path / "clone"))
    clone.folder.mkdir()
    clone.git("init", "--quiet")
    dvc.capture("init", "--quiet", folder=clone.folder)
    shutil.copyfile(ROOT / "params.yaml", clone.folder / "params.yaml")
    (clone.folder / "rank").write_text("8")
    stages = {"evaluate": {"foreach": ["base", "lora", "ptuning_v2"], "do": {"cmd": "echo ${item}", "deps": ["rank"]}}}
    train = {"cmd": TRAIN.format(name="${item}"), "deps": ["rank"], "outs": ["models/weights/${item}"]}
    stages["question_fit"] = {"cmd": "echo fit", "deps": ["rank"]}
    stages["train"] = {"foreach": ["lora", "ptuning_v2"], "do": train}
    (clone.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    retraining.commit_results(clone, "start")
    return clone


def write_results(clone: Clone, **losses: float) -> None:
    """Write manifest and loss of each adapter."""
    for name, loss in losses.items():
        write_json(clone.folder / f"models/weights/{name}/manifest.json", {"weights_sha256": name})
        write_json(clone.folder / f"reports/metrics/{name}.json", {"loss": loss, "probes": 0.5})


def test_outdated_models_are_those_whose_stages_must_run(clone):
    assert set(retraining.find_outdated_models(clone)) == {"base", "lora", "ptuning_v2"}
    clone.repro()
    assert retraining.find_outdated_models(clone) == []
    (clone.folder / "rank").write_text("4")
    assert set(retraining.find_outdated_models(clone)) == {"base", "lora", "ptuning_v2"}


def test_retraining_is_up_to_date_if_neither_stages_nor_the_revision_have_changed(clone):
    assert not retraining.is_up_to_date(clone)
    clone.repro()
    retraining.commit_results(clone, "reproduced")
    assert not retraining.is_up_to_date(clone)  # no retraining yet
    clone.git("update-ref", f"refs/remotes/origin/{retraining.BRANCH}", "HEAD")
    assert retraining.is_up_to_date(clone)


def test_blocked_data_are_distinguished_from_a_stage_that_fails(clone):
    checks = "reports/data_checks.json"
    write_json(clone.folder / checks, {"verdict": "blocked", "reasons": ["an earlier reason"]})
    content = '{"verdict": "blocked", "reasons": ["too many duplicates"]}'
    for command, error, message in (("false", UserError, "dvc repro"), (None, DataBlocked, "too many duplicates")):
        command = command or f"echo '{content}' > new && mv new {checks} && false"
        stages = {name: {"cmd": command} for name in retraining.PREPARED_STAGES}
        (clone.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        with pytest.raises(error, match=message) as raised:
            retraining.reproduce_data(clone)
        assert type(raised.value) is error


def test_challengers_are_the_adapters_with_a_lower_loss_than_the_champion(clone, monkeypatch):
    write_results(clone, lora=1.0, ptuning_v2=2.0)
    monkeypatch.setattr(registry, "fetch_champion", lambda: None)
    assert retraining.rank_challengers(clone) == ["lora", "ptuning_v2"]
    write_results(clone, lora=2.0, ptuning_v2=1.0)
    write_json(clone.folder / "models/champion/manifest.json", {"weights_sha256": "lora"})
    monkeypatch.setattr(registry, "fetch_champion", lambda: registry.FOLDER)
    assert retraining.rank_challengers(clone) == ["ptuning_v2"]


@pytest.mark.parametrize("promoted", ["lora", "ptuning_v2", None])
def test_challengers_are_tried_until_one_is_promoted(clone, monkeypatch, promoted):
    write_results(clone, lora=1.0, ptuning_v2=2.0)
    monkeypatch.setattr(registry, "fetch_champion", lambda: None)
    monkeypatch.setattr(promotion, "promote", lambda name: PromotionResult(name, name == promoted, ()))
    tried = [decision.adapter for decision in retraining.promote_best(clone)]
    assert tried == (["lora"] if promoted == "lora" else ["lora", "ptuning_v2"])
    subject = clone.git("log", "-1", "--format=%s")
    assert subject == ("Keep the champion: lora, ptuning_v2 not promoted" if promoted is None else "start")
