"""Time and peak memory of stage validate over 10,000, 100,000 and 1,000,000 generated rows, JSON Lines and Parquet.

``python -m benchmarks.data_checks`` writes ``benchmarks/results/data_checks.json``; ``python -m benchmarks.data_checks
ROWS … [--parquet]`` only prints. The rows are Chinese
questions and answers of about 250 bytes, most of them good; of a hundred, one is an exact copy, two are
near-duplicates, and one fails a check. Time includes the program's start. Memory is the proportional set size (PSS),
summed over all its processes.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.json
import pyarrow.parquet

from models.storage import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/data_checks.json"
CASES = ((10_000, "jsonl"), (100_000, "jsonl"), (100_000, "parquet"), (1_000_000, "jsonl"), (1_000_000, "parquet"))
COMMON_CHARACTERS = "".join(
    bytes([high, low]).decode("gb2312") for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFF)
)
BAD_ANSWERS = ("", "我是 <NAME>。", "请填 [MASK] 吧", "好的" * 100, "请致电 13800138000 联系我们。")


def write_rows(path: Path, count: int) -> None:
    """Write random rows of two-character words with Zipf-like frequencies."""
    generator = random.Random(count)
    words = ["".join(generator.sample(COMMON_CHARACTERS[:2000], 2)) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    text_of_words = generator.choices(words, weights, k=2_000_000)

    def text(length: int) -> str:
        start = generator.randrange(len(text_of_words) - length)
        return "".join(text_of_words[start : start + length])

    recent = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = number % 100
            row = {"context": text(6) + "？", "target": f"{text(13)}，{text(13)}。"}
            if kind == 50:
                row = recent[-20]
            elif kind in (60, 70):
                row = {**recent[-20], "target": recent[-20]["target"].replace("，", "；")}
            elif kind == 80:
                row["target"] = BAD_ANSWERS[number // 100 % len(BAD_ANSWERS)]
            recent = [*recent[-30:], row]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_validate(folder: Path) -> tuple[float, int]:
    """Return the seconds and the peak memory in bytes of stage validate."""
    outs = ("checked", "quarantine", "docs", "metrics", "findings", "verdict", "accepted")
    out_options = [argument for name in outs for argument in (f"--{name}", str(folder / "out" / name))]
    command = [sys.executable, "-m", "stages.validate", "--raw", str(folder / "raw"), *out_options]
    command += ["--tokenizer", str(folder / "tokenizer"), "--templates", "reports/data_docs"]
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.5)  # reading PSS takes tens of milliseconds of processor time
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        sys.exit(process.stderr.read())
    return seconds, peak


def tree_memory(pid: int) -> int:
    """Return the bytes (PSS) of a process and its descendants."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        pass  # ended since it was listed
    return total


def convert_to_parquet(rows: Path) -> Path:
    """Replace a file of JSON Lines by a Parquet file of the same rows, and return its path."""
    table = pyarrow.json.read_json(rows)
    rows.unlink()
    pyarrow.parquet.write_table(table, rows.with_suffix(".parquet"))
    return rows.with_suffix(".parquet")


def measure(count: int, file_type: str, folder: Path) -> dict:
    (folder / "raw").mkdir(parents=True)
    rows = folder / "raw/rows.jsonl"
    write_rows(rows, count)
    if file_type == "parquet":
        rows = convert_to_parquet(rows)
    command = [sys.executable, "-m", "stages.tokenizer", "--corpus", "data/demo/base/corpus.jsonl"]
    subprocess.run([*command, "--out", str(folder / "tokenizer")], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    seconds, peak = run_validate(folder)
    row_counts = json.loads((folder / "out/findings").read_text(encoding="utf-8"))["books"]
    return {
        "rows": count,
        "file_type": file_type,
        "bytes_per_row": round(rows.stat().st_size / count, 1),
        "seconds": round(seconds, 1),
        "microseconds_per_row": round(1e6 * seconds / count, 1),
        "peak_gib": round(peak / 2**30, 2),
        "near_duplicates": row_counts["failed"]["no_near_duplicate"],
        "copies": row_counts["failed"]["unique"],
        "quarantined": row_counts["quarantined"],
    }


def main() -> None:
    file_type = "parquet" if "--parquet" in sys.argv else "jsonl"
    cases = [(int(argument), file_type) for argument in sys.argv[1:] if argument.isdecimal()] or CASES
    results = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(*case, Path(folder)))
        print(results[-1], flush=True)
    machine = {"processors": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if not sys.argv[1:]:
        write_json(RESULTS, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
