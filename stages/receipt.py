"""The receipt: what ``validate`` let through, checked by every stage behind it.

A receipt names the files beside it and their hashes. ``validate`` writes one beside
``train.jsonl`` and ``eval.jsonl``; ``encode`` writes one beside its own files, which carries the
hash of the first. There is no switch to skip the check.
"""

from pathlib import Path

from models.errors import DataBlocked
from models.storage import read_json, sha256_of, write_json

RECEIPT = "receipt.json"
SPLITS = ("train", "eval")


def write(folder: Path, **facts) -> None:
    """Write the receipt for the split files in ``folder``, with any facts worth keeping."""
    files = {f"{split}.jsonl": sha256_of(folder / f"{split}.jsonl") for split in SPLITS}
    write_json(folder / RECEIPT, {**facts, "files": files})


def verify(folder: Path) -> dict:
    """Check that the files in ``folder`` are, byte for byte, those of its receipt.

    Returns:
        The receipt, and its own hash under ``sha256``.

    Raises:
        DataBlocked: a file was changed, added or removed since the receipt was written.
    """
    path = folder / RECEIPT
    if not path.is_file():
        raise DataBlocked(f"{folder} has no receipt, so nothing vouches for its data; run `dvc repro validate encode`.")
    receipt = read_json(path)
    present = {file.name for file in folder.glob("*.jsonl")}
    if present != set(receipt["files"]):
        odd = ", ".join(sorted(present ^ set(receipt["files"])))
        raise DataBlocked(f"{folder}: {odd} does not belong to the receipt; run `dvc repro -f validate encode`.")
    for name, expected in receipt["files"].items():
        if sha256_of(folder / name) != expected:
            raise DataBlocked(
                f"{folder / name} is not the file that was checked: its bytes differ from the receipt; "
                "run `dvc repro -f validate encode`."
            )
    return {**receipt, "sha256": sha256_of(path)}


def verify_encoded(encoded: Path, checked: Path) -> dict:
    """Check both receipts and that the second grew from the first; gives the first."""
    checked_receipt, encoded_receipt = verify(checked), verify(encoded)
    if encoded_receipt["checked_sha256"] != checked_receipt["sha256"]:
        raise DataBlocked(f"{encoded} was encoded from other data than {checked} holds; run `dvc repro encode`.")
    return checked_receipt
