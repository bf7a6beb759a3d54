"""Times of champion and challenger, of real models."""

from types import SimpleNamespace

import pytest
import torch
from shared_data import ADAPTER_SETTINGS, conversation, minimal_manifest

from formats import params_schema
from models import adapter_files, adapters, base_model, generation, model_loading
from stages.promote import latency


def test_rows_are_spread_from_the_first_to_the_last():
    assert latency.spread(range(5)) == [0, 1, 2, 3, 4]
    assert latency.spread(range(160)) == list(range(0, 160, 10))


def turns(monkeypatch, found, waits):
    """Let each token of a turn's model take so many seconds, champion and challenger in turn.

    The clock goes by tokens only: what else runs on this machine does not make a round longer.
    """
    waits, now = iter(waits), [0.0]

    def turn(*_, load=model_loading.load_model):
        model, wait = load(found, "float32"), next(waits)
        model.register_forward_pre_hook(lambda *_: now.__setitem__(0, now[0] + wait))
        return model

    monkeypatch.setattr(generation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(model_loading, "load_model", turn)
    monkeypatch.setattr(adapter_files, "load_model", turn)
    return waits


@pytest.fixture
def seconds_in_turn(base_folder, tmp_path):
    """Times champion (the base) and challenger (a LoRA on it)."""
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(found))
    questions = [conversation("你是谁？"), conversation("请以“夕阳”造句。"), conversation("3加4等于多少？")]
    knobs = params_schema.load()
    knobs = knobs.model_copy(update={"evaluate": knobs.evaluate.model_copy(update={"max_new_tokens": 8})})
    return found, lambda: latency.in_turn({"champion": None, "challenger": tmp_path / "lora"}, found, questions, knobs)


def test_who_takes_longer_is_found(seconds_in_turn, monkeypatch):
    found, timed = seconds_in_turn
    waits = turns(monkeypatch, found, [0.02, 0.1, 0.02, 0.1])
    seconds = timed()
    assert next(waits, None) is None
    assert seconds["challenger"] == pytest.approx(5 * seconds["champion"])


def test_a_machine_that_is_busy_for_a_while_is_waited_for(seconds_in_turn, monkeypatch):
    """The load comes behind the champion's first turn, and goes before its third."""
    found, timed = seconds_in_turn
    waits = turns(monkeypatch, found, [0.02, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02])
    seconds = timed()
    assert next(waits, None) is None
    assert seconds["challenger"] == pytest.approx(seconds["champion"])


def test_the_quickest_round_needs_another_like_it():
    assert latency.confirmed([[1.0, 1.0], [3.0, 3.0], [1.1, 1.05]])
    assert not latency.confirmed([[1.0, 1.0]])
    assert not latency.confirmed([[1.0, 1.0], [1.2, 1.2]])


def test_who_says_more_is_not_slower(tokenizer, model):
    """Every answer goes to its full length, also where the model would say nothing at all."""
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.eos_token_id] = 1e-6  # whatever comes, this or nothing
    questions = [conversation("你是谁？")] * 3
    seconds = latency.seconds_of(model, tokenizer, questions, 8)
    assert len(seconds) == 3
    assert len(steps) >= 5 * 8 - 5  # two to warm up, three to be timed
