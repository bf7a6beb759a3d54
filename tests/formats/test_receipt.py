"""The receipt: every change of the data after the check is detected."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import write_rows

from formats import receipt
from models.errors import DataBlocked


@pytest.fixture
def folders(tmp_path):
    checked, encoded = tmp_path / "checked", tmp_path / "encoded"
    for folder in (checked, encoded):
        for split in receipt.SPLITS:
            write_rows(folder / f"{split}.jsonl", [{"split": split, "folder": folder.name}])
    receipt.write(checked, books={})
    receipt.write(encoded, checked_sha256=receipt.read(checked).sha256)
    return checked, encoded


def flip_one_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def verify(encoded, checked) -> None:
    receipt.refuse_unrelated(receipt.read(encoded).verify(), receipt.read(checked).verify())


def test_unchanged_data_are_verified(folders):
    checked, encoded = folders
    verify(encoded, checked)
    for split in receipt.SPLITS:
        assert list(receipt.read(checked).rows(split)) == [{"split": split, "folder": "checked"}]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("split", receipt.SPLITS)
def test_one_changed_byte_is_detected(folders, index, split):
    flip_one_byte(folders[index] / f"{split}.jsonl")
    with pytest.raises(DataBlocked, match=rf"{split}\.jsonl"):
        verify(folders[1], folders[0])
    with pytest.raises(DataBlocked, match=rf"{split}\.jsonl"):
        receipt.read(folders[index]).rows(split)


@pytest.mark.parametrize("split", receipt.SPLITS)
def test_rows_swapped_after_the_check_are_refused(folders, split):
    checked = receipt.read(folders[0]).verify()
    write_rows(folders[0] / f"{split}.jsonl", [{"split": split, "folder": "unchecked"}])
    with pytest.raises(DataBlocked, match="bytes differ"):
        checked.rows(split)


def test_rows_swapped_while_they_are_parsed_are_not_read(folders):
    rows = receipt.read(folders[0]).rows("train")
    write_rows(folders[0] / "train.jsonl", [{"split": "train", "folder": "unchecked"}])
    assert list(rows) == [{"split": "train", "folder": "checked"}]


def test_receipt_swapped_after_it_was_read_is_not_used(folders):
    checked = receipt.read(folders[0])
    sha256 = checked.sha256
    write_rows(folders[0] / "train.jsonl", [{"folder": "unchecked"}])
    receipt.write(folders[0], books={})
    with pytest.raises(DataBlocked, match="bytes differ"):
        checked.verify()
    assert receipt.read(folders[0]).sha256 != sha256


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"files": ' + b'{"a":' * 50_000,
    b" " * (receipt.MAX_BYTES + 1),
    b'{"files": {}}',
    b'{"files": {"train.jsonl": "' + b"0" * 64 + b'"}}',
    b'{"files": {"../a.jsonl": "' + b"0" * 64 + b'", "train.jsonl": "' + b"0" * 64 + b'"}}',
    b'{"files": {"train.jsonl": 1, "eval.jsonl": 2}}',
    b'{"files": {"train.jsonl": "' + b"0" * 63 + b'", "eval.jsonl": "' + b"0" * 64 + b'"}}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_receipt_is_one_message(folders, content):
    (folders[0] / receipt.RECEIPT).write_bytes(content)
    with pytest.raises(DataBlocked, match="run `dvc repro -f validate encode`"):
        receipt.read(folders[0])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 400), length=st.integers(0, 40), other=st.binary(max_size=40))
def test_mutated_receipt_is_read_or_refused(folders, start, length, other):
    path = folders[0] / receipt.RECEIPT
    original = path.read_bytes()
    try:
        path.write_bytes(original[:start] + other + original[start + length :])
        receipt.read(folders[0]).verify()
    except DataBlocked:
        pass
    finally:
        path.write_bytes(original)


def test_added_file_is_detected(folders):
    write_rows(folders[0] / "extra.jsonl", [{}])
    with pytest.raises(DataBlocked, match=r"extra\.jsonl"):
        receipt.read(folders[0])


def test_removed_file_or_receipt_is_detected(folders):
    (folders[0] / "eval.jsonl").unlink()
    with pytest.raises(DataBlocked, match=r"eval\.jsonl"):
        receipt.read(folders[0])
    (folders[1] / receipt.RECEIPT).unlink()
    with pytest.raises(DataBlocked, match="no receipt"):
        receipt.read(folders[1])


def test_token_ids_of_other_data_are_refused(folders):
    checked, encoded = folders
    path = checked / receipt.RECEIPT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"books": {"rows_in": 1}}))
    with pytest.raises(DataBlocked, match="other data"):
        verify(encoded, checked)
