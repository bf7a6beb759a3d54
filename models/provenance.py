"""The code and the libraries that a result depends on.

Keys of checkpoints and of kept answers hold both hashes: a training that another version of the code began would end
with weights that no version makes.
"""

import ast
import importlib.metadata
from functools import cache
from pathlib import Path

from models.storage import sha256_of, sha256_of_json

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "sentencepiece")


@cache
def imported_files(module: str) -> frozenset[Path]:
    """Files of this project that a module imports, directly or not, wherever in its code; its own file too.

    Files that hold nothing but a docstring, such as most ``__init__.py``, are left out: results do not depend on them.

    Args:
        module: dotted name below the project's folder; of a package, what ``python -m`` runs.
    """
    entry = f"{module}.__main__"
    waiting, seen = [entry if _file_of(entry) else module], set()
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting += [name.rpartition(".")[0], *_imports_of(path)]
    return frozenset(path for path in seen if _has_code(path))


def _file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if module and file.is_file()), None)


@cache
def _imports_of(path: Path) -> tuple[str, ...]:
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _has_code(path: Path) -> bool:
    body = ast.parse(path.read_bytes()).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


@cache
def code_sha256(module: str) -> str:
    """Hash of all code of this project that a module imports, see :func:`imported_files`."""
    return sha256_of_json({str(path.relative_to(ROOT)): sha256_of(path) for path in imported_files(module)})


def library_versions() -> dict[str, str | None]:
    """Versions of the libraries that compute results, without their build; None where one is missing."""
    return {name: _version_of(name) for name in LIBRARIES}


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
