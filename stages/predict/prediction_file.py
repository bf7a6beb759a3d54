"""The output of predictions: rows as JSON Lines or CSV, appended in blocks, so that an interrupted run resumes.

Rows go to ``NAME.partial``. After each block, ``NAME.progress`` records the number of rows and bytes that are complete,
with a hash of everything that the answers depend on. At the end the partial file is renamed.
"""

import csv
import fcntl
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, write_json

SUFFIXES = (".jsonl", ".csv")
_COLUMNS = ("location", "question", "answer", "tokens", "reference", "fault")  # of CSV


class PredictionFile:
    """An output file that is written in blocks of rows. A context manager: the file is locked within it.

    Args:
        path: of the complete file; ends in one of :data:`SUFFIXES`.
        key: hash of everything that the rows depend on.

    Attributes:
        num_rows: number of rows that are complete.
        faults: number of complete rows without an answer, by the reason.

    Raises:
        UserError: the complete file exists, another process writes it, or the rows so far have another key.
    """

    def __init__(self, path: Path, key: str):
        if path.suffix not in SUFFIXES:
            raise UserError(f"--out: {path} must end in {' or '.join(SUFFIXES)}.")
        if path.exists():
            raise UserError(f"--out: {path} exists already; remove it or name another file.")
        self.path, self._key = path, key
        self._partial, self._progress = (path.with_name(f"{path.name}.{kind}") for kind in ("partial", "progress"))
        self.num_rows, self._num_bytes = 0, 0
        self.faults: Counter[str] = Counter()

    def __enter__(self) -> "PredictionFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"--out: another process writes {self.path}; wait for it or name another file.") from None
        except OSError:
            pass  # a file system without locks
        self._read_progress()
        self._file.truncate(self._num_bytes)  # a block that was being written is generated again
        return self

    def _read_progress(self) -> None:
        if not self._progress.exists():
            return
        try:
            progress = read_json(self._progress)
            key, rows, size = progress["key"], int(progress["rows"]), int(progress["bytes"])
            faults = Counter(progress["faults"])
        except (UserError, KeyError, TypeError, ValueError):
            return  # damaged: start again
        if key != self._key:
            raise UserError(
                f"{self._partial} has answers to other questions, or of another model or other options; remove it and "
                f"{self._progress.name}, or name another file with --out."
            )
        if size <= self._partial.stat().st_size:
            self.num_rows, self._num_bytes, self.faults = rows, size, faults

    def append(self, rows: Sequence[dict]) -> None:
        """Append a block of rows, complete on disk when this returns."""
        content = self._encode(rows)
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_rows, self._num_bytes = self.num_rows + len(rows), self._num_bytes + len(content)
        self.faults.update(row["fault"] for row in rows if "fault" in row)
        progress = {"key": self._key, "rows": self.num_rows, "bytes": self._num_bytes, "faults": self.faults}
        write_json(self._progress, progress)

    def _encode(self, rows: Sequence[dict]) -> bytes:
        if self.path.suffix == ".jsonl":
            return b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\r\n")
        if not self.num_rows:
            text.write("\ufeff")  # without it, Excel reads GBK
            writer.writeheader()
        writer.writerows(row | {"question": row["messages"][-1]["content"] if row["messages"] else ""} for row in rows)
        return text.getvalue().encode("utf-8")

    def finish(self) -> None:
        """Rename the partial file to the complete one."""
        self._partial.replace(self.path)
        self._progress.unlink(missing_ok=True)

    def __exit__(self, *_) -> None:
        self._file.close()
        if not self.num_rows and not self.path.exists():
            with suppress(OSError):
                self._partial.unlink()
