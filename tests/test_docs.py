"""The documentation: generated blocks are current, both languages are in step, and its claims on checks are true."""

import importlib.util
import json
import re

import numpy as np
import pytest
import yaml
from gate import GateRun, params_with
from shared_data import ROOT

from docs import generate
from stages.validate.checks import build_checks
from stages.validate.expectations import run_checks

PAGES = sorted(page.name for page in (ROOT / "docs/en").glob("*.md"))
EXAMPLES = generate.check_examples()
CHECKS = {check.name: check for check in build_checks(params_with())}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Pages ---------------------------------------------------------------------------------------------


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)]


def code_blocks(text: str) -> list[str]:
    return [re.sub(r"\s*# .*", "", block) for block in re.findall(r"```\w+\n.*?```", text, flags=re.S)]


def test_both_languages_have_the_same_pages():
    assert sorted(page.name for page in (ROOT / "docs/zh").glob("*.md")) == PAGES
    for language in generate.LANGUAGES:
        listed = re.findall(r"[\w-]+\.md", text_of(f"docs/zensical.{language}.yml"))
        assert sorted(listed) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_are_in_step(page):
    english, chinese = text_of(f"docs/en/{page}"), text_of(f"docs/zh/{page}")
    assert headings(english) == headings(chinese)
    assert code_blocks(english) == code_blocks(chinese)
    targets = [re.findall(r"\]\(([^)#]+)", text) for text in (english, chinese)]
    assert sorted(targets[0]) == sorted(targets[1])


@pytest.mark.parametrize("language", generate.LANGUAGES)
def test_generated_blocks_are_current(language):
    for page in generate.pages(language):
        assert generate.updated(page) == page.read_text(encoding="utf-8"), f"{page} is out of date: run `make docs`"


def test_every_chinese_description_belongs_to_a_key():
    shown = generate.params_reference("zh")
    assert all(description in shown.replace("\\|", "|") for description in generate.chinese_descriptions().values())


@pytest.mark.parametrize("language", generate.LANGUAGES)
def test_links_and_images_exist(language):
    for page in generate.pages(language):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_and_variables_in_the_documentation_exist():
    documents = [*(ROOT / "docs").glob("*/*.md"), *ROOT.glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in documents)
    for module in set(re.findall(r"python -m ((?:pipelines|flows|stages|chat|benchmarks)\b[\w.]*)", text)):
        assert importlib.util.find_spec(module.rstrip(".")), module
    code = "\n".join(path.read_text(encoding="utf-8") for path in (*ROOT.glob("*/*.py"), *ROOT.glob("deploy/*.*")))
    for variable in set(re.findall(r"TUNELINE_[A-Z_]+", text)):
        assert re.search(rf"\b{variable}\b", code), variable
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M)):
        assert re.search(rf"^{target}:", text_of("Makefile"), flags=re.M), target


def test_source_files_in_the_documentation_exist():
    for page in [*(ROOT / "docs").glob("*/*.md"), *ROOT.glob("*.md")]:
        names = re.findall(r"`((?:\w+/)+[\w.-]+\.(?:py|po|yaml))`", page.read_text(encoding="utf-8"))
        assert not [name for name in names if not (ROOT / name).is_file()], page


# README --------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    for name in ("README.md", "README.zh.md"):
        assert len(text_of(name).splitlines()) <= 120


def test_the_readme_shows_measured_speeds():
    cases = json.loads(text_of("benchmarks/results/training.json"))["cases"]
    for name in ("README.md", "README.zh.md"):
        for case in ("lora", "usual_loop"):
            assert f"{cases[case]['tokens_per_second']:,}" in text_of(name)


# Checks --------------------------------------------------------------------------------------------


def test_every_check_has_examples():
    assert list(EXAMPLES) == list(CHECKS)


def run_gate(lines, base_folder, folder, settings=None):
    (folder / "raw").mkdir(parents=True)
    (folder / "raw/a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    params = params_with(**(settings or {}).get("validate", {}))
    encode = params.encode.model_copy(update=(settings or {}).get("encode", {}))
    return GateRun(folder / "raw", base_folder, folder / "kept", params.model_copy(update={"encode": encode}))


def test_examples_of_rows_fail_and_pass(base_folder, tmp_path):
    rows = {name: EXAMPLES[name] for name, check in CHECKS.items() if check.scope == "row"}
    plain = [name for name in rows if "settings" not in rows[name]]
    lines = [rows[name][kind][0] for name in plain for kind in ("fails", "passes")]
    outcome = run_gate(lines, base_folder, tmp_path / "plain")
    cross_row = {name for name, check in CHECKS.items() if check.scope == "cross_row"}
    for index, name in enumerate(plain):
        assert outcome.failed(2 * index + 1) - cross_row == {name}
        assert outcome.failed(2 * index + 2) - cross_row == set(), name
    for name in rows.keys() - set(plain):
        lines = [rows[name]["fails"][0], rows[name]["passes"][0]]
        outcome = run_gate(lines, base_folder, tmp_path / name, rows[name]["settings"])
        assert [outcome.failed(1), outcome.failed(2)] == [{name}, set()]


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.scope == "cross_row"])
def test_examples_among_rows_fail_and_pass(base_folder, tmp_path, name):
    fails, passes = (generate.lines_of(EXAMPLES[name][kind]) for kind in ("fails", "passes"))
    outcome = run_gate(fails, base_folder, tmp_path / "fails")
    assert name in outcome.failed(len(fails))
    outcome = run_gate(passes, base_folder, tmp_path / "passes")
    assert not any(name in outcome.failed(line) for line in range(1, len(passes) + 1))


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.scope == "data"])
def test_examples_of_datasets_fail_and_pass(name):
    check = CHECKS[name]
    for kind, fails in (("fails", True), ("passes", False)):
        ((column, value),) = EXAMPLES[name][kind].items()
        assert column == check.column
        (finding,) = run_checks({column: np.array([value], np.float64)}, np.zeros(1, np.int64), [check])
        assert bool(len(finding.rows)) == fails


def test_the_examples_are_plain_yaml():
    assert all(entry.keys() >= {"en", "zh", "fails", "passes"} for entry in EXAMPLES.values())
    yaml.safe_dump(EXAMPLES)
