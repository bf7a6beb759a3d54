"""The receipt of checked data: hashes of the files next to it, verified by every later stage.

Stage validate writes a receipt next to the files of the three splits. Stage encode writes another one next to its own
files, with the hash of the first; it encodes no test rows. The verification cannot be skipped.

A stage parses exactly the bytes that it hashed: :meth:`VerifiedFolder.rows` reads a file once, so that a file swapped
after :func:`read` is refused.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import DataBlocked
from models.storage import sha256_of, write_json

RECEIPT = "receipt.json"
# Training fits the training rows. Checkpoints, early stopping and sweeps are chosen by the evaluation rows. The test
# rows choose nothing: comparison and promotion decide by them.
SPLITS = ("train", "eval", "test")
ENCODED_SPLITS = ("train", "eval")
MAX_BYTES = 16 * 2**20  # of a receipt, which lists every raw file
REMEDY = "run `dvc repro -f validate encode`."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Receipt(BaseModel):
    """The content of ``receipt.json``.

    Attributes:
        files: hashes of the split files next to the receipt.
        tokenizer_sha256: hash of the tokenizer that counted or encoded the tokens.
        read: by validate: hashes of the raw files.
        decisions_sha256: by validate: hash of the decisions of a review that were applied.
        suite: by validate: all checks with their limits.
        books: by validate: row counts (rows in = train + eval + test + quarantined) and further figures.
        checked_sha256: by encode: hash of the receipt of the encoded data.
        prompt_version: by encode: version of the prompt template.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: dict[Literal["train.jsonl", "eval.jsonl", "test.jsonl"], Sha256] = Field(min_length=len(ENCODED_SPLITS))
    tokenizer_sha256: Sha256 | None = None
    read: dict[str, Sha256] | None = None
    decisions_sha256: Sha256 | None = None
    suite: dict | None = None
    books: dict | None = None
    checked_sha256: Sha256 | None = None
    prompt_version: Annotated[str, Field(max_length=64)] | None = None


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder of split files with its receipt.

    Attributes:
        sha256: hash of the parsed bytes of the receipt.
    """

    folder: Path
    receipt: Receipt
    sha256: str

    def rows(self, split: str) -> Iterator[dict]:
        """Read the rows of a split, from bytes that match the receipt; blank lines are skipped.

        Raises:
            DataBlocked: the hash of the file differs from the receipt, the file cannot be read, or the folder has no
                such split.
        """
        path = self.folder / f"{split}.jsonl"
        if path.name not in self.receipt.files:
            raise DataBlocked(f"{self.folder} has no {split} split, because an older version wrote it; {REMEDY}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataBlocked(f"{path} cannot be read ({error.strerror}); {REMEDY}") from None
        self._compare(path, hashlib.sha256(content).hexdigest())
        return (json.loads(line) for line in io.BytesIO(content) if line.strip())

    def verify(self) -> "VerifiedFolder":
        """Verify all files without parsing them; returns itself.

        Raises:
            DataBlocked: the hash of a file differs from the receipt.
        """
        for name in self.receipt.files:
            self._compare(self.folder / name, sha256_of(self.folder / name))
        return self

    def require_tokenizer(self, sha256: str, base: str) -> None:
        """Check that the tokens were counted with a base's tokenizer.

        Args:
            sha256: of the tokenizer.
            base: name of the base, for the message.

        Raises:
            DataBlocked: they were counted with another one.
        """
        if self.receipt.tokenizer_sha256 != sha256:
            raise DataBlocked(
                f"The tokens of {self.folder} were counted with another tokenizer than that of {base}; "
                "run `dvc repro -f tokenizer validate general`."
            )

    def _compare(self, path: Path, sha256: str) -> None:
        if sha256 != self.receipt.files[path.name]:
            raise DataBlocked(f"{path} changed after it was checked: its bytes differ from the receipt; {REMEDY}")


def write(folder: Path, splits: Sequence[str] = SPLITS, **facts) -> None:
    """Write the receipt of the split files in a folder.

    Args:
        splits: of which the folder has files.
        facts: further fields of :class:`Receipt`.
    """
    files = {f"{split}.jsonl": sha256_of(folder / f"{split}.jsonl") for split in splits}
    write_json(folder / RECEIPT, Receipt(**facts, files=files).model_dump(exclude_none=True))


def read(folder: Path) -> VerifiedFolder:
    """Read the receipt of a folder. The split files are verified later, when they are read.

    Raises:
        DataBlocked: the receipt is missing or damaged, or a split file was added or removed.
    """
    path = folder / RECEIPT
    if not path.is_file():
        raise DataBlocked(f"{folder} has no receipt, so its data were not checked; run `dvc repro validate encode`.")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    receipt = _parse(path, content)
    present = {file.name for file in folder.glob("*.jsonl")}
    if differing := present ^ set(receipt.files):
        raise DataBlocked(f"{folder}: {', '.join(sorted(differing))} was added or removed after the check; {REMEDY}")
    return VerifiedFolder(folder, receipt, hashlib.sha256(content).hexdigest())


def _parse(path: Path, content: bytes) -> Receipt:
    if len(content) > MAX_BYTES:
        raise DataBlocked(f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is not a receipt; {REMEDY}")
    try:
        return Receipt.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataBlocked(f"{path} is damaged ({where}: {first['msg']}); {REMEDY}") from None


def refuse_unrelated(encoded: VerifiedFolder, checked: VerifiedFolder) -> None:
    """Raise DataBlocked if the token ids were encoded from other data than the checked ones."""
    if encoded.receipt.checked_sha256 != checked.sha256:
        raise DataBlocked(
            f"{encoded.folder} was encoded from other data than those in {checked.folder}; run `dvc repro encode`."
        )
