"""Latency of champion and challenger, measured on real models with a simulated clock."""

from types import SimpleNamespace

import pytest
import torch
from shared_data import ADAPTER_SETTINGS, conversation, minimal_manifest

from formats import params_schema
from models import adapter_files, adapters, base_model, generation, model_loading
from stages.promote import latency


def test_rows_are_evenly_spaced():
    assert latency.evenly_spaced(range(5)) == [0, 1, 2, 3, 4]
    assert latency.evenly_spaced(range(160)) == list(range(0, 160, 10))


@pytest.fixture
def base(base_folder) -> base_model.Base:
    return base_model.read_record(base_folder)


@pytest.fixture
def measure(base, tmp_path, monkeypatch):
    """Return a function that measures champion (the base model) and challenger (a LoRA adapter on it).

    Its argument are the seconds per token of each round, champion and challenger alternating. The simulated clock
    advances with tokens only, so the load of this machine has no influence.
    """
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(base))
    params = params_schema.load()
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"max_new_tokens": 8})})
    conversations = [conversation("你是谁？"), conversation("请以“夕阳”造句。"), conversation("3加4等于多少？")]

    def measure(*seconds_per_token: float) -> dict[str, float]:
        remaining_rounds, clock = iter(seconds_per_token), [0.0]

        def load_model(*_, load=model_loading.load_model):
            model, seconds = load(base, "float32"), next(remaining_rounds)
            model.register_forward_pre_hook(lambda *_: clock.__setitem__(0, clock[0] + seconds))
            return model

        monkeypatch.setattr(generation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        monkeypatch.setattr(model_loading, "load_model", load_model)
        monkeypatch.setattr(adapter_files, "load_model", load_model)
        models = {"champion": None, "challenger": tmp_path / "lora"}
        seconds = latency.measure_alternately(models, base, conversations, params)
        assert next(remaining_rounds, None) is None
        return seconds

    return measure


def test_slower_model_has_the_higher_latency(measure):
    seconds = measure(0.02, 0.1, 0.02, 0.1)
    assert seconds["challenger"] == pytest.approx(5 * seconds["champion"])


def test_rounds_repeat_until_the_load_is_over(measure):
    """The machine is under load from the champion's first round to its third."""
    seconds = measure(0.02, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02)
    assert seconds["challenger"] == pytest.approx(seconds["champion"])


def test_fastest_round_is_confirmed_by_a_similar_one():
    assert latency.is_confirmed([[1.0, 1.0], [3.0, 3.0], [1.1, 1.05]])
    assert not latency.is_confirmed([[1.0, 1.0]])
    assert not latency.is_confirmed([[1.0, 1.0], [1.2, 1.2]])


def test_all_answers_have_the_full_length(tokenizer, model):
    """Even if the model would end every answer at once."""
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.eos_token_id] = 1e-6  # the end token has the highest logit
    conversations = [conversation("你是谁？")] * 3
    seconds = latency.time_answers(model, tokenizer, conversations, 8)
    assert len(seconds) == 3
    assert len(steps) >= 5 * 8 - 5  # two answers for warm-up, three timed ones
