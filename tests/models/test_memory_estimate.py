import json
import re
from dataclasses import replace

import pytest
from shared_data import ROOT

from benchmarks.training_speed import CASES, expectation
from models.chatglm import ChatGLMConfig
from models.memory_estimate import GIB, Training, alternatives, plan, refusal

MEASURED = json.loads((ROOT / "benchmarks/results/training.json").read_text(encoding="utf-8"))["cases"]
LORA = {"rank": 8, "dropout": 0.1, "target_modules": ["query_key_value", "dense"]}
BIG = Training(ChatGLMConfig(), "lora", LORA, "bfloat16", rows=16, length=2048, labelled=16 * 1024)


@pytest.mark.parametrize("name", [name for name in MEASURED if not CASES[name].pad_to])
def test_the_plan_is_within_15_percent_of_what_was_measured(name):
    predicted = plan(expectation(CASES[name])).total / GIB
    assert predicted == pytest.approx(MEASURED[name]["peak_memory_gib"], rel=0.15)


def test_what_saves_memory_is_planned_to():
    for saving in ({"checkpointing": True}, {"quantization": 4}, {"rows": 8}, {"length": 1024}, {"packed": True}):
        assert plan(replace(BIG, **saving)).total < plan(BIG).total
    full = replace(BIG, method="full", attachment={})
    assert plan(full).total > plan(BIG).total + 80 * GIB  # 6.7 billion parameters with Adam
    wide = replace(BIG, attachment=LORA | {"target_modules": ["query_key_value", "dense_4h_to_h"]})
    assert plan(wide).activations > plan(BIG).activations


def test_what_fits_is_not_refused():
    assert refusal(BIG, plan(BIG).total) is None


@pytest.mark.parametrize("room", [8, 16, 24, 48, 80])
def test_a_refusal_has_numbers_and_two_ways_that_fit(room):
    problem = refusal(BIG, room * GIB)
    assert f"{plan(BIG).total / GIB:.1f} GiB (base 12.5" in problem
    assert f"{room:.1f} GiB are free" in problem
    advised = re.findall(r"\((\d+\.\d) GiB\)", problem)
    assert len(advised) == (2 if room > 13.5 else 1)  # with less, only 4 bits fit
    assert all(float(each) <= room for each in advised)


def test_nothing_fits_a_watch():
    assert "No setting fits" in refusal(BIG, GIB)


def test_every_alternative_is_another_training():
    others = [other for _, _, other in alternatives(BIG)]
    assert BIG not in others
    assert len(set(map(repr, others))) == len(others)
