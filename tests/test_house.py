"""The rules of the house, checked from the code's own imports and from the documents."""

import ast
import re
from pathlib import Path

import pytest
from shared_data import ROOT

ROOMS = ("texts", "models", "measures", "formats", "stages", "pipelines", "flows", "chat")
MAY_IMPORT = {
    "texts": set(),
    "models": {"models"},  # no texts: a translation is no reason to train again
    "measures": {"measures", "models", "texts"},
    "formats": {"formats", "models", "texts"},
    "stages": {"formats", "measures", "models", "stages", "texts"},
    "pipelines": {"formats", "models", "pipelines", "texts"},
    "flows": {"flows", "formats", "models", "pipelines", "texts"},
    "chat": {"chat", "models", "texts"},
}
OWNERS = {  # one owner for each big library
    "peft": ["models/adapters.py"],
    "great_expectations": ["stages/validate/"],
    "prefect": ["flows/"],
    "evidently": ["stages/compare/", "stages/drift/"],
    "dvc": [
        "pipelines/checkpoint_sync.py",
        "pipelines/dvc.py",
    ],  # file systems and settings; commands are run as programs
    "dvclive": ["stages/train/"],
    "sentencepiece": ["models/tiny_base_model.py", "models/vocabulary.py"],
    "datasketch": ["stages/validate/minhash.py"],
}
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; ``from a import b`` counts as ``a.b`` too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_who_may_import_whom(path):
    room = path.parts[0]
    rooms = {name.split(".")[0] for name in imports(path)} & set(ROOMS)
    assert rooms <= MAY_IMPORT[room]
    if room in ("pipelines", "flows"):
        used = {name for name in imports(path) if re.match(r"formats\.\w+$", name)}
        assert used <= {"formats.params_schema"}, "pipelines read params.yaml and no other file of the stages"
    if room == "flows":
        used = {name for name in imports(path) if re.match(r"models\.\w+$", name)}
        known = {"models.command_line", "models.credentials", "models.errors", "models.storage"}
        assert used <= known, "a flow knows of the models only errors and files"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "stages"], ids=str)
def test_stages_never_import_each_other(path):
    own = f"stages.{path.parts[1].removesuffix('.py')}"
    others = {name for name in imports(path) if name.startswith("stages.")}
    assert not {name for name in others if not name.startswith(own)}


@pytest.mark.parametrize("library", OWNERS)
def test_one_owner_for_each_big_library(library):
    users = {str(path) for path in FILES if library in {name.split(".")[0] for name in imports(path)}}
    assert all(any(user.startswith(owner) for owner in OWNERS[library]) for user in users), users


def test_only_one_place_starts_programs():
    users = {str(path) for path in FILES if "subprocess" in imports(path)}
    assert users == {"pipelines/processes.py", "stages/train/adapter_training.py"}  # which asks git for the commit


def test_names_say_something():
    hollow = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager)(_|$)")
    assert not [path for path in FILES if any(hollow.search(part.removesuffix(".py")) for part in path.parts)]


def test_nothing_unpickles_or_runs_code_of_others():
    for path in FILES:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in source, path
        assert not re.search(r"torch\.load\(|pickle\.loads?\(|weights_only=False|(?<![.\w])(?:eval|exec)\(", source), (
            path
        )


def test_every_stage_is_a_module_a_section_and_tested():
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for stage in stages.keys() - {"general"}:  # which is ingest and validate once more
        module = ROOT / "stages" / stage
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), stage
        assert stage in sections or stage in ("params", "tokenizer"), stage  # all sections, and the base's
        assert (ROOT / f"tests/stages/test_{stage}.py").is_file(), stage


def headings(name: str) -> list[int]:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.M)]


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [re.sub(r"\s*#.*", "", block) for block in re.findall(r"```(?:bash|yaml)\n(.*?)```", text, flags=re.S)]


def test_the_two_readmes_are_in_step():
    assert headings("README.md") == headings("README.zh.md")
    assert blocks("README.md") == blocks("README.zh.md")


def test_what_the_readme_links_to_exists():
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_the_lock_pins_everything_exactly():
    pins = (ROOT / "requirements.lock").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins
