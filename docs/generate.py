"""Fill the generated blocks of the documentation, and stage its pages for the site generator.

A generated block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Its content comes from the schema of
params.yaml, from ``docs/checks.yaml`` or from ``benchmarks/results``, in the language of the page. The pages are
committed with their blocks, so that they can be read without building the site; ``tests/test_docs.py`` fails if a block
is out of date, and ``make docs`` brings it up to date.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from formats.params_schema import Params

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
LANGUAGES = ("en", "zh")
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FILE_TYPES = {"jsonl": "JSON Lines", "parquet": "Parquet"}
_METHODS = {"Lora": "lora", "PTuningV2": "ptuning_v2", "Full": "full"}
_WORDS = {
    "key": {"en": "key", "zh": "键"},
    "type": {"en": "type", "zh": "类型"},
    "default": {"en": "default", "zh": "默认值"},
    "effect": {"en": "effect", "zh": "作用"},
    "check": {"en": "check", "zh": "检查"},
    "severity": {"en": "severity (default first)", "zh": "级别（默认在前）"},
    "settings": {"en": "settings", "zh": "其他设置"},
    "required": {"en": "required", "zh": "必填"},
    "integer": {"en": "integer", "zh": "整数"},
    "number": {"en": "number", "zh": "数"},
    "string": {"en": "string", "zh": "字符串"},
    "boolean": {"en": "`true` or `false`", "zh": "`true` 或 `false`"},
    "list of": {"en": "list of {}", "zh": "{} 的列表"},
    "multiple of": {"en": "multiple of {}", "zh": "{} 的倍数"},
    "all methods": {"en": "all methods", "zh": "所有方法"},
    "settings of the examples": {"en": "With these settings:", "zh": "设置如下时："},
    "fails": {"en": "Fails:", "zh": "不通过："},
    "passes": {"en": "Passes:", "zh": "通过："},
    "set": {"en": "parameter set", "zh": "参数集"},
    "batch": {"en": "rows × tokens per step", "zh": "每步的行数 × 词元数"},
    "peak memory": {"en": "peak memory", "zh": "显存峰值"},
    "file type": {"en": "file type", "zh": "文件类型"},
    "peak RAM": {"en": "peak memory", "zh": "内存峰值"},
    "tokens/s": {"en": "tokens/s", "zh": "词元/秒"},
    "rows": {"en": "rows", "zh": "行数"},
    "seconds": {"en": "seconds", "zh": "秒"},
    "near-duplicates": {"en": "near-duplicates found", "zh": "发现的近似重复"},
    "model": {"en": "model", "zh": "模型"},
    "same tokens": {"en": "first tokens that are equal", "zh": "开头相同的词元数"},
}


# Keys of params.yaml -------------------------------------------------------------------------------


@cache
def _schema() -> dict:
    return Params.model_json_schema(by_alias=True)


@cache
def chinese_descriptions() -> dict[str, str]:
    """Return the Chinese description of every key, by ``Class.key``."""
    return yaml.safe_load((DOCS / "params.zh.yaml").read_text(encoding="utf-8"))


def _own_fields(name: str) -> Iterator[tuple[str, dict]]:
    """Yield the fields of a class, but for those of all methods only under ``Lora``."""
    for key, field in _schema()["$defs"][name]["properties"].items():
        if name == "Lora" or name not in _METHODS or key not in _shared_by_methods():
            yield key, field


@cache
def _shared_by_methods() -> frozenset[str]:
    properties = [set(_schema()["$defs"][name]["properties"]) for name in _METHODS]
    return frozenset(set.intersection(*properties) - {"method"})


def _plain(field: Mapping) -> str:
    text = " ".join(field.get("description", "").split())
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text))


def _description(name: str, key: str, field: Mapping, language: str) -> str:
    return _plain(field) if language == "en" else chinese_descriptions()[f"{name}.{key}"]


def _type(field: Mapping, language: str) -> str:
    """Return the type of a field and its bounds in words."""
    if "anyOf" in field:
        return f"{_type(next(option for option in field['anyOf'] if option.get('type') != 'null'), language)}, `null`"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return _WORDS["list of"][language].format(_type(field["items"], language))
    if field.get("type") == "null":
        return "`null`"
    word = _WORDS[field.get("type", "string")][language]
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {field[bound]:g}" for bound, sign in bounds if bound in field and field[bound] < 2**32]
    if "multipleOf" in field:
        limits.append(_WORDS["multiple of"][language].format(field["multipleOf"]))
    return f"{word} {', '.join(limits)}".strip()


def _default(field: Mapping, language: str) -> str:
    if "default" not in field:
        return _WORDS["required"][language]
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _table(language: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    titles = [_WORDS.get(column, {}).get(language, column) for column in columns]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _fields_table(name: str, keys: Mapping[str, dict], language: str) -> str:
    rows = [
        (f"`{key}`", _type(field, language), _default(field, language), _description(name, key, field, language))
        for key, field in keys.items()
    ]
    return _table(language, ("key", "type", "default", "effect"), rows)


def _checks_table(language: str) -> str:
    rows = []
    for name, check in _schema()["$defs"]["Checks"]["properties"].items():
        fields = _schema()["$defs"][check["$ref"].rsplit("/", 1)[1]]["properties"]
        first = check["default"]["severity"]
        severities = [first, *(value for value in fields["severity"]["enum"] if value != first)]
        settings = [
            f"`{key}`: `{json.dumps(value, ensure_ascii=False)}`"
            for key, value in check["default"].items()
            if key != "severity"
        ]
        text = _description("Checks", name, check, language)
        rows.append((f"`{name}`", ", ".join(severities), ", ".join(settings) or "–", text))
    return _table(language, ("check", "severity", "settings", "effect"), rows)


def params_reference(language: str) -> str:
    """Return a table of keys for every section of params.yaml."""
    parts = []
    for section, field in _schema()["properties"].items():
        if section == "adapters":
            parts += _adapter_tables(language)
            continue
        name = field["$ref"].rsplit("/", 1)[1]
        fields = _schema()["$defs"][name]["properties"]
        plain = {key: value for key, value in fields.items() if "$ref" not in value and key != "models"}
        parts.append(f"### `{section}`\n\n{_fields_table(name, plain, language)}")
        for key, value in fields.items():
            if key == "checks":
                parts.append(f"### `{section}.checks`\n\n{_checks_table(language)}")
            elif "$ref" in value:
                nested = value["$ref"].rsplit("/", 1)[1]
                table = _fields_table(nested, _schema()["$defs"][nested]["properties"], language)
                parts.append(f"### `{section}.{key}`\n\n{table}")
    return "\n\n".join(parts)


def _adapter_tables(language: str) -> list[str]:
    """Return the table of keys that all methods share, then one for each method."""
    shared = {key: value for key, value in _own_fields("Lora") if key in _shared_by_methods()}
    tables = [f"{_WORDS['all methods'][language]}\n\n{_fields_table('Lora', shared, language)}"]
    for name, method in _METHODS.items():
        own = {key: value for key, value in _own_fields(name) if key not in _shared_by_methods()}
        tables.append(f"`{method}`\n\n{_fields_table(name, own, language)}")
    return [f"### `adapters.<name>`: {table}" for table in tables]


# Checks of the data --------------------------------------------------------------------------------


@cache
def check_examples() -> dict[str, dict]:
    """Return by check its explanation in both languages and its examples ``fails`` and ``passes``.

    An example of a row check is a list of lines of a data file, an example of a dataset check a mapping of figures.
    """
    return yaml.safe_load((DOCS / "checks.yaml").read_text(encoding="utf-8"))


def lines_of(example: list[str | Mapping]) -> list[str]:
    """Return the lines of an example; an entry with ``times`` stands for so many lines, numbered from 1 at ``{n}``."""
    lines = []
    for entry in example:
        if isinstance(entry, str):
            lines.append(entry)
        else:
            lines += [entry["line"].replace("{n}", str(number)) for number in range(1, entry["times"] + 1)]
    return lines


def _code(example: list[str | Mapping] | Mapping) -> str:
    if isinstance(example, Mapping):
        return f"```yaml\n{yaml.safe_dump(example, sort_keys=False).strip()}\n```"
    shown = [entry if isinstance(entry, str) else f"{entry['line']}   (n = 1 … {entry['times']})" for entry in example]
    return "```json\n" + "\n".join(shown) + "\n```"


def checks_reference(language: str) -> str:
    """Return for every check what it looks for, an example that fails and one that passes, and their settings."""
    parts = []
    for name, entry in check_examples().items():
        texts = [entry[language]]
        if "settings" in entry:
            texts.append(f"{_WORDS['settings of the examples'][language]}\n\n{_code(entry['settings'])}")
        texts += [f"{_WORDS[kind][language]}\n\n{_code(entry[kind])}" for kind in ("fails", "passes")]
        parts.append("\n\n".join([f"### `{name}`", *texts]))
    return "\n\n".join(parts)


# Benchmarks ----------------------------------------------------------------------------------------


def _results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _training(language: str) -> str:
    from benchmarks import training_speed  # imports torch

    return training_speed.table(_results("training"), language)


def _devices(language: str) -> str:
    from benchmarks import multi_gpu

    return multi_gpu.table(_results("devices"), language)


def _parameter_sets(language: str) -> str:
    rows = [
        (
            f"`{result['set']}`",
            f"{result['batch_size']} × {result['tokens_per_row']}",
            str(result["gradient_checkpointing"]).lower(),
            f"{result['peak_memory_gib']:.1f} GiB",
            f"{result['tokens_per_second']:,}",
        )
        for result in _results("parameter_sets")["results"]
    ]
    return _table(language, ("set", "batch", "`gradient_checkpointing`", "peak memory", "tokens/s"), rows)


def _decoding(language: str) -> str:
    rows = [
        (f"`{name}`", f"{case['tokens_per_second']:.0f}", f"{case['generate_tokens_per_second']:.0f}")
        for name, case in _results("decoding")["cases"].items()
    ]
    return _table(language, ("model", "tokens/s", "`generate()`"), rows)


def _data_checks(language: str) -> str:
    rows = [
        (
            f"{result['rows']:,}",
            _FILE_TYPES[result["file_type"]],
            f"{result['seconds']:.0f}",
            f"{result['peak_gib']:.2f} GiB",
            f"{result['near_duplicates']:,}",
        )
        for result in _results("data_checks")["results"]
    ]
    return _table(language, ("rows", "file type", "seconds", "peak RAM", "near-duplicates"), rows)


BLOCKS: dict[str, Callable[[str], str]] = {
    "params": params_reference,
    "checks": checks_reference,
    "training": _training,
    "devices": _devices,
    "parameter-sets": _parameter_sets,
    "decoding": _decoding,
    "data-checks": _data_checks,
}


# Pages ---------------------------------------------------------------------------------------------


def pages(language: str) -> list[Path]:
    """Return all pages of a language."""
    return sorted((DOCS / language).glob("*.md"))


def updated(page: Path) -> str:
    """Return the text of a page with its generated blocks brought up to date."""
    language = page.parent.name

    def fill(block: re.Match) -> str:
        return f"{block[1]}\n{BLOCKS[block[2]](language)}\n\n{block[3]}"

    return _BLOCK.sub(fill, page.read_text(encoding="utf-8"))


def stage(folder: Path) -> None:
    """Copy the pages of each language with images and configuration, as the site generator reads them, to a folder.

    The generator refuses links out of a language's pages, so that each language has its own copy of the images.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for language in LANGUAGES:
        shutil.copytree(DOCS / "images", folder / language / "images")
        shutil.copy(DOCS / "language.js", folder / language)
        shutil.copy(DOCS / f"zensical.{language}.yml", folder)
        for page in pages(language):
            text = page.read_text(encoding="utf-8").replace("](../images/", "](images/")
            (folder / language / page.name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=Path, metavar="DIR", help="also write what the site generator reads to DIR")
    arguments = parser.parse_args()
    for language in LANGUAGES:
        for page in pages(language):
            page.write_text(updated(page), encoding="utf-8")
    if arguments.stage:
        stage(arguments.stage)


if __name__ == "__main__":
    main()
