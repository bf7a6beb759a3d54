import json
import re
from dataclasses import replace

import pytest
from shared_data import ROOT

from benchmarks.training_speed import CASES, memory_spec
from models.chatglm import ChatGLMConfig
from models.memory_estimate import GIB, TrainingSpec, estimate, explain_misfit, list_alternatives

MEASURED = json.loads((ROOT / "benchmarks/results/training.json").read_text(encoding="utf-8"))["cases"]
LORA = {"rank": 8, "dropout": 0.1, "target_modules": ["query_key_value", "dense"]}
LARGE = TrainingSpec(ChatGLMConfig(), "lora", LORA, "bfloat16", rows=16, length=2048, labelled=16 * 1024)


@pytest.mark.parametrize("name", [name for name in MEASURED if not CASES[name].pad_to])
def test_estimate_is_within_15_percent_of_the_measurement(name):
    estimated = estimate(memory_spec(CASES[name])).total / GIB
    assert estimated == pytest.approx(MEASURED[name]["peak_memory_gib"], rel=0.15)


def test_settings_that_save_memory_lower_the_estimate():
    for saving in (
        {"gradient_checkpointing": True},
        {"quantization": 4},
        {"rows": 8},
        {"length": 1024},
        {"packed": True},
    ):
        assert estimate(replace(LARGE, **saving)).total < estimate(LARGE).total
    full = replace(LARGE, method="full", attachment={})
    assert estimate(full).total > estimate(LARGE).total + 80 * GIB  # 6.7 billion parameters with Adam
    wide = replace(LARGE, attachment=LORA | {"target_modules": ["query_key_value", "dense_4h_to_h"]})
    assert estimate(wide).activations > estimate(LARGE).activations


def test_a_training_that_fits_needs_no_explanation():
    assert explain_misfit(LARGE, estimate(LARGE).total) is None


@pytest.mark.parametrize("free_gib", [8, 16, 24, 48, 80])
def test_explanation_has_numbers_and_two_settings_that_fit(free_gib):
    message = explain_misfit(LARGE, free_gib * GIB)
    assert f"{estimate(LARGE).total / GIB:.1f} GiB (base 12.5" in message
    assert f"{free_gib:.1f} GiB are free" in message
    sizes = re.findall(r"\((\d+\.\d) GiB\)", message)
    assert len(sizes) == (2 if free_gib > 13.5 else 1)  # below that, only 4 bits fit
    assert all(float(size) <= free_gib for size in sizes)


def test_explanation_if_no_setting_fits():
    assert "No setting fits" in explain_misfit(LARGE, GIB)


def test_alternatives_are_distinct_trainings():
    alternatives = [spec for _, _, spec in list_alternatives(LARGE)]
    assert LARGE not in alternatives
    assert len(set(map(repr, alternatives))) == len(alternatives)
