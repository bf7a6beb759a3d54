"""Time and peak memory of stage validate over 10,000, 100,000 and 1,000,000 generated rows.

``python -m benchmarks.data_checks [ROWS …]`` writes ``benchmarks/results/data_checks.json``. The rows
are Chinese questions and answers of about 250 bytes, most of them good; of a hundred, one is an exact
copy, two are near-duplicates, one fails a check. Time is of the whole program, its start included;
memory is the sum over all its processes of what each has for itself and its share of the rest (PSS).
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

from models.storage import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/data_checks.json"
SIZES = (10_000, 100_000, 1_000_000)
COMMON = "".join(bytes([high, low]).decode("gb2312") for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFF))
BAD = ("", "我是 <NAME>。", "请填 [MASK] 吧", "好的" * 100, "请致电 13800138000 联系我们。")


def write_rows(path: Path, count: int) -> None:
    """Write rows from a seed: words of two characters, drawn as words are, some often and most seldom."""
    draw = random.Random(count)
    words = ["".join(draw.sample(COMMON[:2000], 2)) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    pool = draw.choices(words, weights, k=2_000_000)

    def text(length: int) -> str:
        start = draw.randrange(len(pool) - length)
        return "".join(pool[start : start + length])

    earlier = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = number % 100
            row = {"context": text(6) + "？", "target": f"{text(13)}，{text(13)}。"}
            if kind == 50:
                row = earlier[-20]
            elif kind in (60, 70):
                row = {**earlier[-20], "target": earlier[-20]["target"].replace("，", "；")}
            elif kind == 80:
                row["target"] = BAD[number // 100 % len(BAD)]
            earlier = [*earlier[-30:], row]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_validate(folder: Path) -> tuple[float, int]:
    """Seconds, and peak memory in bytes."""
    outs = ("checked", "quarantine", "docs", "metrics", "findings", "verdict", "accepted")
    paths = [argument for name in outs for argument in (f"--{name}", str(folder / "out" / name))]
    command = [sys.executable, "-m", "stages.validate", "--raw", str(folder / "raw"), *paths]
    shared = ["--tokenizer", str(folder / "tokenizer"), "--templates", "reports/data_docs"]
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([*command, *shared], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.5)  # a look takes tens of milliseconds of a processor, which the program lacks meanwhile
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        sys.exit(process.stderr.read())
    return seconds, peak


def memory_of(pid: int) -> int:
    total = 0
    try:
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            total += process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        pass  # it ended between the two looks
    return total


def measure(count: int, folder: Path) -> dict:
    (folder / "raw").mkdir(parents=True)
    rows = folder / "raw/rows.jsonl"
    write_rows(rows, count)
    make = [sys.executable, "-m", "stages.tokenizer", "--corpus", "data/demo/base/corpus.jsonl"]
    subprocess.run([*make, "--out", str(folder / "tokenizer")], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    seconds, peak = run_validate(folder)
    books = json.loads((folder / "out/metrics").read_text(encoding="utf-8"))["data"]
    return {
        "rows": count,
        "bytes_per_row": round(rows.stat().st_size / count, 1),
        "seconds": round(seconds, 1),
        "microseconds_per_row": round(1e6 * seconds / count, 1),
        "peak_gib": round(peak / 2**30, 2),
        "near_duplicates": books["failed"]["no_near_duplicate"],
        "copies": books["failed"]["unique"],
        "quarantined": books["quarantined"],
    }


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or SIZES
    results = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(count, Path(folder)))
        print(results[-1], flush=True)
    machine = {"processors": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if not sys.argv[1:]:
        write_json(RESULTS, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
