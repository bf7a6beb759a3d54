"""Order of the steps in which models are compared, promoted and pushed; the steps themselves are replaced."""

import pytest

from flows import finetune_adapters
from formats import params_schema
from models.errors import UserError
from pipelines import retraining

ATTEMPT = ["compare_models", "unmeasured_challengers", "promote_best", "push_results"]


def replace_steps(monkeypatch, unmeasured: list[list[str]], pushes: list[bool]) -> list[str]:
    """Replace the steps, and return the list of their calls.

    Args:
        unmeasured: results of unmeasured_challengers, one for each attempt.
        pushes: results of push_results, one for each attempt.
    """
    calls: list[str] = []
    results = {"unmeasured_challengers": unmeasured, "push_results": pushes}

    def replace(module, name: str) -> None:
        def step(*_):
            calls.append(name)
            return results[name].pop(0) if name in results else name

        monkeypatch.setattr(module, name, step)

    for name in (*ATTEMPT, "merge_remote_changes", "read_outcome"):
        replace(retraining, name)
    replace(finetune_adapters, "measure_on_agent")
    return calls


def test_measured_challengers_need_no_agent(monkeypatch):
    calls = replace_steps(monkeypatch, [[]], [True])
    assert finetune_adapters.compare_and_promote(None, "run", "by hand") == "read_outcome"
    assert calls == [*ATTEMPT, "read_outcome"]


def test_unmeasured_challengers_are_measured_on_an_agent(monkeypatch):
    calls = replace_steps(monkeypatch, [["lora"]], [True])
    finetune_adapters.compare_and_promote(None, "run", "by hand")
    assert calls == [*ATTEMPT[:2], "measure_on_agent", *ATTEMPT[2:], "read_outcome"]


def test_comparison_is_repeated_after_a_push_of_another_retraining(monkeypatch):
    calls = replace_steps(monkeypatch, [[], []], [False, True])
    finetune_adapters.compare_and_promote(None, "run", "by hand")
    assert calls == [*ATTEMPT, "merge_remote_changes", *ATTEMPT, "read_outcome"]


def test_retraining_fails_if_others_push_during_every_attempt(monkeypatch):
    number = retraining.MAX_PUSH_ATTEMPTS
    calls = replace_steps(monkeypatch, [[]] * number, [False] * number)
    with pytest.raises(UserError, match="was changed by others"):
        finetune_adapters.compare_and_promote(None, "run", "by hand")
    assert calls.count("push_results") == number


def test_title_of_a_training_names_data_and_size():
    params = params_schema.load()
    assert finetune_adapters.training_title("base", "3f2a1234", params) == "evaluate base · data 3f2a"
    assert finetune_adapters.training_title("lora", "3f2a1234", params) == "finetune lora · data 3f2a · rank 16"
    assert finetune_adapters.training_title("ptuning_v2", "3f2a1234", params).endswith("prefix tokens")
