"""The receipt: what ``validate`` let through, checked by every stage behind it.

A receipt names the files beside it and their hashes. ``validate`` writes one beside
``train.jsonl`` and ``eval.jsonl``; ``encode`` writes one beside its own files, which carries the
hash of the first. There is no switch to skip the check.

A stage parses the bytes that it hashed: :meth:`Verified.rows` reads a file once, so that a file that is swapped
after :func:`read` is refused.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import DataBlocked
from models.storage import sha256_of, write_json

RECEIPT = "receipt.json"
SPLITS = ("train", "eval")
LARGEST = 16 * 2**20  # bytes of a receipt, which names every raw file
AGAIN = "run `dvc repro -f validate encode`."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Receipt(BaseModel):
    """What stands in ``receipt.json``.

    Attributes:
        files: hashes of the split files beside it.
        tokenizer_sha256: of the tokenizer by which tokens were counted or made.
        read, suite, books: of ``validate``: hashes of the raw files, checks with their limits, and the number of rows
            in, trained on, evaluated on and quarantined.
        checked_sha256, prompt_version: of ``encode``: the receipt of the data that were encoded, and the prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: dict[Literal["train.jsonl", "eval.jsonl"], Sha256] = Field(min_length=len(SPLITS))
    tokenizer_sha256: Sha256 | None = None
    read: dict[str, Sha256] | None = None
    suite: dict | None = None
    books: dict | None = None
    checked_sha256: Sha256 | None = None
    prompt_version: Annotated[str, Field(max_length=64)] | None = None


@dataclass(frozen=True)
class Verified:
    """A folder of split files with its receipt.

    Attributes:
        sha256: of the receipt's bytes, which were parsed.
    """

    folder: Path
    receipt: Receipt
    sha256: str

    def rows(self, split: str) -> Iterator[dict]:
        """The rows of a split, from the bytes that the receipt vouches for; blank lines are passed over.

        Raises:
            DataBlocked: the file's bytes differ from the receipt.
        """
        path = self.folder / f"{split}.jsonl"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataBlocked(f"{path} cannot be read ({error.strerror}); {AGAIN}") from None
        self._compare(path, hashlib.sha256(content).hexdigest())
        return (json.loads(line) for line in io.BytesIO(content) if line.strip())

    def verify(self) -> "Verified":
        """Check all files without parsing them; gives itself.

        Raises:
            DataBlocked: a file's bytes differ from the receipt.
        """
        for split in SPLITS:
            path = self.folder / f"{split}.jsonl"
            self._compare(path, sha256_of(path))
        return self

    def _compare(self, path: Path, sha256: str) -> None:
        if sha256 != self.receipt.files[path.name]:
            raise DataBlocked(f"{path} is not the file that was checked: its bytes differ from the receipt; {AGAIN}")


def write(folder: Path, **facts) -> None:
    """Write the receipt for the split files in ``folder``, with any facts of :class:`Receipt`."""
    files = {f"{split}.jsonl": sha256_of(folder / f"{split}.jsonl") for split in SPLITS}
    write_json(folder / RECEIPT, Receipt(**facts, files=files).model_dump(exclude_none=True))


def read(folder: Path) -> Verified:
    """Read the receipt of a folder, whose split files are compared with it when they are read.

    Raises:
        DataBlocked: there is none, it is damaged, or a file was added or removed since it was written.
    """
    path = folder / RECEIPT
    if not path.is_file():
        raise DataBlocked(f"{folder} has no receipt, so nothing vouches for its data; run `dvc repro validate encode`.")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    receipt = _parse(path, content)
    present = {file.name for file in folder.glob("*.jsonl")}
    if strangers := present ^ set(receipt.files):
        raise DataBlocked(f"{folder}: {', '.join(sorted(strangers))} does not belong to the receipt; {AGAIN}")
    return Verified(folder, receipt, hashlib.sha256(content).hexdigest())


def _parse(path: Path, content: bytes) -> Receipt:
    if len(content) > LARGEST:
        raise DataBlocked(f"{path} is larger than {LARGEST >> 20} MiB, so it is no receipt; {AGAIN}")
    try:
        return Receipt.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataBlocked(f"{path} is damaged ({where}: {first['msg']}); {AGAIN}") from None


def refuse_unrelated(encoded: Verified, checked: Verified) -> None:
    """Raises DataBlocked: the token ids were made from other data than the checked ones."""
    if encoded.receipt.checked_sha256 != checked.sha256:
        raise DataBlocked(
            f"{encoded.folder} was encoded from other data than {checked.folder} holds; run `dvc repro encode`."
        )
