import threading

import pytest
import torch
from safetensors.torch import save_file

from models.errors import UserError
from models.storage import sha256_of
from models.tensor_files import NUM_READERS, read_weight_files


@pytest.fixture
def files(tmp_path):
    """More files than readers, with more tensors than the queue holds."""
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


@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_file_is_rejected_at_any_position(files, position):
    path, _, _ = files[position]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} changed"):
        list(read_weight_files(files))


def test_reader_threads_end_when_the_iteration_is_abandoned(files):
    before = threading.active_count()
    stream = read_weight_files(files)
    next(stream)
    stream.close()
    assert threading.active_count() == before
