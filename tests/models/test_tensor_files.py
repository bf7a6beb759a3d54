import threading

import pytest
import torch
from safetensors.torch import save_file

from models.errors import UserError
from models.storage import sha256_of
from models.tensor_files import NUM_READERS, read_weight_files


@pytest.fixture
def files(tmp_path):
    """More files than are read at a time, with more tensors than wait in the queue."""
    written = []
    for number in range(2 * NUM_READERS + 1):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"{number}.{index}": torch.full((3,), float(number)) for index in range(4 * NUM_READERS)}, path)
        written.append((path, sha256_of(path), f"{path.name} changed"))
    return written


def test_every_tensor_of_every_file_is_read_once(files):
    read = [(path, name, tensor.tolist()) for path, name, tensor in read_weight_files(files)]
    expected = [
        (path, f"{number}.{index}", [float(number)] * 3)
        for number, (path, _, _) in enumerate(files)
        for index in range(4 * NUM_READERS)
    ]
    assert sorted(read) == sorted(expected)


@pytest.mark.parametrize("spoiled", [0, -1])
def test_a_file_that_changed_is_refused_wherever_it_stands(files, spoiled):
    path, _, _ = files[spoiled]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} changed"):
        list(read_weight_files(files))


def test_readers_end_when_the_caller_wants_no_more(files):
    before = threading.active_count()
    stream = read_weight_files(files)
    next(stream)
    stream.close()
    assert threading.active_count() == before
