from models import provenance
from models.provenance import ROOT, imported_files


def names(module: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in imported_files(module)}


def test_imports_are_followed_into_functions_packages_and_main_modules():
    train = names("stages.train")
    assert {"stages/train/__main__.py", "stages/train/adapter_training.py", "models/training/fit.py"} <= train
    assert "models/low_rank.py" in train  # imported in a function of models.adapters
    assert "stages/__init__.py" in train  # sets environment variables
    assert "stages/train/__init__.py" not in train  # only a docstring
    assert not any(name.startswith("stages/evaluate") for name in train)


def test_the_hash_depends_on_imported_files_only(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name, text in {"a": "from b import c", "b": "import json", "d": "1"}.items():
        (tmp_path / f"{name}.py").write_text(text)

    def hash_after(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        for cached in (imported_files, provenance._imports_of, provenance.code_sha256):
            cached.cache_clear()
        return provenance.code_sha256("a")

    first = hash_after("d", "2")
    assert hash_after("d", "3") == first
    assert hash_after("b", "import json, os") != first
    assert hash_after("b", "import json") == first
    assert hash_after("b", "import d") != first


def test_library_versions_have_no_build_label():
    versions = provenance.library_versions()
    assert versions["torch"]
    assert "+" not in versions["torch"]
    assert provenance._version_of("no-such-package") is None
