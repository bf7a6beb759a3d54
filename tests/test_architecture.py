"""Architecture rules, checked from imports, file names, string literals and documents."""

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
from shared_data import ROOT

PACKAGES = ("texts", "models", "measures", "formats", "stages", "pipelines", "flows", "chat")
MAY_IMPORT = {
    "texts": set(),
    "models": {"models"},  # no texts: a new translation must not retrain the adapters
    "measures": {"measures", "models", "texts"},
    "formats": {"formats", "models", "texts"},
    "stages": {"formats", "measures", "models", "stages", "texts"},
    "pipelines": {"formats", "models", "pipelines", "texts"},
    "flows": {"flows", "formats", "models", "pipelines", "texts"},
    "chat": {"chat", "models", "texts"},
}
ALLOWED_IMPORTERS = {  # files or folders, by library
    "peft": ["models/adapters.py"],
    "great_expectations": ["stages/validate/"],
    "prefect": ["flows/"],
    "evidently": ["stages/compare/", "stages/drift/"],
    # Only DVC's file systems and settings: its commands run in subprocesses.
    "dvc": ["pipelines/checkpoint_sync.py", "pipelines/dvc.py"],
    "dvclive": ["stages/train/"],
    "sentencepiece": ["models/tiny_base_model.py", "models/vocabulary.py"],
    "datasketch": ["stages/validate/minhash.py"],
}
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def read_imports(path: Path) -> set[str]:
    """Return the modules that a file imports, in functions too; ``from a import b`` gives ``a`` and ``a.b``."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_only_lower_packages(path):
    package = path.parts[0]
    packages = {name.split(".")[0] for name in read_imports(path)} & set(PACKAGES)
    assert packages <= MAY_IMPORT[package]
    if package in ("pipelines", "flows"):
        used = {name for name in read_imports(path) if re.match(r"formats\.\w+$", name)}
        allowed = {"formats.params_schema"}
        allowed |= {"formats.training_params", "formats.review_decisions"} if package == "pipelines" else set()
        assert used <= allowed, f"{package} may import only {sorted(allowed)} from formats"
    if package == "flows":
        used = {name for name in read_imports(path) if re.match(r"models\.\w+$", name)}
        allowed = {"models.command_line", "models.credentials", "models.errors", "models.storage"}
        assert used <= allowed, f"flows may import only {sorted(allowed)} from models"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "stages"], ids=str)
def test_stages_do_not_import_each_other(path):
    stage = f"stages.{path.parts[1].removesuffix('.py')}"
    imported = {name for name in read_imports(path) if name.startswith("stages.")}
    assert not {name for name in imported if not name.startswith(stage)}


@pytest.mark.parametrize("library", ALLOWED_IMPORTERS)
def test_large_library_is_imported_in_one_place(library):
    importers = {str(path) for path in FILES if library in {name.split(".")[0] for name in read_imports(path)}}
    assert all(importer.startswith(tuple(ALLOWED_IMPORTERS[library])) for importer in importers), importers


def test_programs_are_started_in_one_place():
    importers = {str(path) for path in FILES if "subprocess" in read_imports(path)}
    # adapter_training.py runs `git rev-parse`; stages may not import pipelines.
    assert importers == {"pipelines/processes.py", "stages/train/adapter_training.py"}


def test_file_names_are_specific():
    generic = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager)(_|$)")
    assert not [path for path in FILES if any(generic.search(part.removesuffix(".py")) for part in path.parts)]


def test_file_names_are_unique():
    """A traceback shows the file name first, so that it must identify the module."""
    folders = (*PACKAGES, "benchmarks", "docs")
    names = Counter(path.name for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert [name for name, count in names.items() if count > 1 and name not in ("__init__.py", "__main__.py")] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "texts"], ids=str)
def test_no_literal_mixes_two_languages(path):
    """Texts for users are English in the code; :mod:`texts` has their translations."""
    mixed = re.compile(r"·\s*[\u4e00-\u9fff]|[\u4e00-\u9fff]\s*·")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [node.value for node in literals if mixed.search(node.value)] == []


def test_no_untrusted_code_or_pickle_is_loaded():
    for path in FILES:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in source, path
        unsafe_call = r"torch\.load\(|pickle\.loads?\(|weights_only=False|(?<![.\w])(?:eval|exec)\("
        assert not re.search(unsafe_call, source), path


def test_every_stage_has_a_module_a_section_and_tests():
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for stage in stages.keys() - {"general"}:  # runs ingest and validate on other data
        module = ROOT / "stages" / stage
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), stage
        # Stage params reads all sections, and stage tokenizer reads section base.
        assert stage in sections or stage in ("params", "tokenizer"), stage
        assert (ROOT / f"tests/stages/test_{stage}.py").is_file(), stage


def read_headings(name: str) -> list[int]:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.M)]


def read_code_blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [re.sub(r"\s*#.*", "", block) for block in re.findall(r"```(?:bash|yaml)\n(.*?)```", text, flags=re.S)]


def test_both_readmes_have_the_same_headings_and_code():
    assert read_headings("README.md") == read_headings("README.zh.md")
    assert read_code_blocks("README.md") == read_code_blocks("README.zh.md")


def test_link_targets_of_documents_exist():
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_lock_file_pins_exact_versions():
    pins = (ROOT / "requirements.lock").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins


BENCHMARKS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=str)
def test_names_that_a_benchmark_uses_exist(path):
    """Benchmarks need a GPU or an hour, so no test runs them all; a renamed function breaks them unseen."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    modules = {}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        if node.module.split(".")[0] not in (*PACKAGES, "benchmarks"):
            continue
        package = importlib.import_module(node.module)
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            value = getattr(package, alias.name, None) or importlib.import_module(name)
            if inspect.ismodule(value):
                modules[alias.asname or alias.name] = value
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
        if isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{path}:{node.lineno}: {node.value.id}.{node.attr}"
