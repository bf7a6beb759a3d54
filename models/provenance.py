"""Hash of the code, and versions of the libraries, that a result depends on.

Both are part of the keys of checkpoints and cached answers. Otherwise a training run could resume from a checkpoint of
other code, and end with weights that no version of the code produces.
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
    """Return the project's files that a module imports, with its own: transitively, and from inside functions too.

    Files with a docstring only, such as most ``__init__.py``, are left out, because results do not depend on them.

    Args:
        module: dotted name, relative to the project's folder; a package stands for its ``__main__``.
    """
    entry = f"{module}.__main__"
    queue, seen = [entry if _file_of(entry) else module], set()
    while queue:
        name = queue.pop()
        path = _file_of(name)
        if path is None or path in seen:
            continue
        seen.add(path)
        queue += [name.rpartition(".")[0], *_imports_of(path)]
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
    """Return one SHA-256 over the files of :func:`imported_files`."""
    return sha256_of_json({str(path.relative_to(ROOT)): sha256_of(path) for path in imported_files(module)})


def library_versions() -> dict[str, str | None]:
    """Return the versions of :data:`LIBRARIES` without local build labels; None for a library that is missing."""
    return {name: _version_of(name) for name in LIBRARIES}


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
