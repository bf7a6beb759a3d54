"""Times of champion and challenger, of real models."""

import time

import torch
from given import SETTINGS, conversation, manifest_of

from models import adapters, base
from stages import params
from stages.promote import timing


def test_rows_are_spread_from_the_first_to_the_last():
    assert timing.spread(range(5)) == [0, 1, 2, 3, 4]
    assert timing.spread(range(160)) == list(range(0, 160, 10))


def test_who_takes_longer_is_found_though_the_machine_is_busy_at_times(base_folder, tmp_path, monkeypatch):
    found = base.read_record(base_folder)
    model = adapters.attach(base.load_model(found, "float32"), "lora", **SETTINGS["lora"])
    adapters.save(model, tmp_path / "lora", manifest_of(found))
    questions = [conversation("你是谁？"), conversation("请以“夕阳”造句。"), conversation("3加4等于多少？")]
    waits = iter([0.0, 0.01, 0.01, 0.05])  # seconds a token: the last round is disturbed, and the champion's

    def turn(*_, load=base.load_model):
        model, wait = load(found, "float32"), next(waits)
        model.register_forward_pre_hook(lambda *_: time.sleep(wait))
        return model

    monkeypatch.setattr(base, "load_model", turn)
    monkeypatch.setattr(adapters, "load_model", turn)
    knobs = params.load()
    knobs = knobs.model_copy(update={"evaluate": knobs.evaluate.model_copy(update={"max_new_tokens": 8})})
    seconds = timing.in_turn({"champion": None, "challenger": tmp_path / "lora"}, found, questions, knobs)
    assert next(waits, None) is None
    assert seconds["challenger"] > seconds["champion"] + 0.04


def test_who_says_more_is_not_slower(tokenizer, model):
    """Every answer goes to its full length, also where the model would say nothing at all."""
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.eos_token_id] = 1e-6  # whatever comes, this or nothing
    questions = [conversation("你是谁？")] * 3
    seconds = timing.seconds_of(model, tokenizer, questions, 8)
    assert len(seconds) == 3
    assert len(steps) >= 5 * 8 - 5  # two to warm up, three to be timed
