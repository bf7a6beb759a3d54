import json

import pytest
from given import write_rows

from models.errors import DataBlocked
from stages import receipt


@pytest.fixture
def folders(tmp_path):
    checked, encoded = tmp_path / "checked", tmp_path / "encoded"
    for folder in (checked, encoded):
        for split in receipt.SPLITS:
            write_rows(folder / f"{split}.jsonl", [{"split": split, "folder": folder.name}])
    receipt.write(checked, books={})
    receipt.write(encoded, checked_sha256=receipt.verify(checked)["sha256"])
    return checked, encoded


def flip_one_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_untouched_data_verify(folders):
    checked, encoded = folders
    assert receipt.verify_encoded(encoded, checked)["sha256"]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("split", receipt.SPLITS)
def test_one_changed_byte_is_found(folders, which, split):
    flip_one_byte(folders[which] / f"{split}.jsonl")
    with pytest.raises(DataBlocked, match=rf"{split}\.jsonl"):
        receipt.verify_encoded(folders[1], folders[0])


def test_a_file_put_there_by_hand_is_found(folders):
    write_rows(folders[0] / "extra.jsonl", [{}])
    with pytest.raises(DataBlocked, match=r"extra\.jsonl"):
        receipt.verify(folders[0])


def test_a_removed_file_or_receipt_is_found(folders):
    (folders[0] / "eval.jsonl").unlink()
    with pytest.raises(DataBlocked, match=r"eval\.jsonl"):
        receipt.verify(folders[0])
    (folders[1] / receipt.RECEIPT).unlink()
    with pytest.raises(DataBlocked, match="no receipt"):
        receipt.verify(folders[1])


def test_tokens_of_other_data_are_found(folders):
    checked, encoded = folders
    path = checked / receipt.RECEIPT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"books": {"rows_in": 1}}))
    with pytest.raises(DataBlocked, match="other data"):
        receipt.verify_encoded(encoded, checked)
