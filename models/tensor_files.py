"""Read tensors from the same bytes that are hashed, so that no file can be replaced between the check and its use.

safetensors files are read once, sequentially: each tensor is built from the buffer that a thread hashes at the same
time. PyTorch's pickled files need random access, so they are copied to an anonymous file in memory, hashed during the
copy, and unpickled from it. Host memory in use at a time, besides the caller's tensors: two tensors, or one pickled
file, per reader.
"""

import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from typing import IO, TYPE_CHECKING

from models.errors import UserError
from models.schemas import dict_without_duplicates, to_printable

if TYPE_CHECKING:
    import torch  # takes seconds to import, so functions import it after their checks

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {"I8": "int8"}  # of quantized weights
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
MAX_HEADER = 2**24  # bytes; ChatGLM-6B's header has 50,000
MAX_RANK = 8
CHUNK_BYTES = 2**24
NUM_READERS = min(4, os.cpu_count() or 1)


class DamagedFile(UserError):
    """A weight file that is truncated, damaged or holds other objects than tensors."""


def is_complete(path: Path) -> bool:
    """Whether a weight file has its full length, unlike an interrupted download."""
    if path.suffix == ".bin":
        return zipfile.is_zipfile(path)  # torch.save writes a zip file, whose directory is at its end
    try:
        with path.open("rb") as file:
            _read_header(file, path)
    except DamagedFile:
        return False
    return True


def read_tensors(
    path: Path, sha256: str | None, mismatch_message: str, allow_codes: bool = False
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield name and tensor of each tensor of a weight file, on the CPU.

    The hash is known after the last tensor, so use the tensors only if the iteration ends without an error.

    Args:
        sha256: expected hash; None for a file that this process has just written.
        mismatch_message: error message if the hash differs.
        allow_codes: accept int8 tensors, see :mod:`models.published_quantization`.

    Raises:
        UserError: the file is missing or damaged, or has another hash.
    """
    if not path.is_file():
        raise UserError(mismatch_message)
    read = _read_pickled if path.suffix == ".bin" else _read_safetensors
    with path.open("rb") as file:
        for name, tensor in read(file, path, sha256, mismatch_message):
            if not allow_codes:
                _check_is_weight(path, name, tensor)
            yield name, tensor


def read_weight_files(
    files: Sequence[tuple[Path, str, str]], allow_codes: bool = False
) -> Iterator[tuple[Path, str, "torch.Tensor"]]:
    """Yield path, name and tensor of several weight files, up to :data:`NUM_READERS` of which are read in parallel.

    One core hashes 1.2 GB/s: for the 13 GB of ChatGLM-6B that takes longer than disk and GPU transfer together.

    Args:
        files: path, hash and message of :func:`read_tensors` for each file.
        allow_codes: see :func:`read_tensors`.

    Raises:
        UserError: see :func:`read_tensors`.
    """
    queue: Queue = Queue(NUM_READERS)
    is_cancelled = Event()

    def read(path: Path, sha256: str, mismatch_message: str) -> None:
        for name, tensor in read_tensors(path, sha256, mismatch_message, allow_codes):
            queue.put((path, name, tensor))
            if is_cancelled.is_set():
                return

    with ThreadPoolExecutor(NUM_READERS) as pool:
        readers = [pool.submit(read, *file) for file in files]
        try:
            while not all(reader.done() for reader in readers) or not queue.empty():
                with suppress(Empty):
                    yield queue.get(timeout=0.01)
            for reader in readers:
                reader.result()
        finally:  # drain the queue: readers may block in put()
            is_cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(reader.done() for reader in readers):
                with suppress(Empty):
                    queue.get(timeout=0.01)


def load_tensors(path: Path, sha256: str | None, mismatch_message: str) -> dict[str, "torch.Tensor"]:
    """Return all tensors of a weight file by name; see :func:`read_tensors`."""
    return dict(read_tensors(path, sha256, mismatch_message))


def load_pickled(path: Path) -> dict[str, "torch.Tensor"]:
    """Return all tensors of a file that torch.save wrote, without a check of its hash; see :func:`unpickle`."""
    with path.open("rb") as file:
        tensors = dict(_read_pickled(file, path, None, ""))
    for name, tensor in tensors.items():
        _check_is_weight(path, name, tensor)
    return tensors


def _check_is_weight(path: Path, name: str, tensor: "torch.Tensor") -> None:
    if not tensor.is_floating_point():
        raise DamagedFile(_wrong_type_message(path, name, tensor.dtype))


# safetensors ---------------------------------------------------------------------------------------


def _read_safetensors(file: IO[bytes], path: Path, sha256: str | None, mismatch_message: str) -> Iterator[tuple]:
    import torch

    header, entries = _read_header(file, path)
    digest = hashlib.sha256(header)
    pending: Future | None = None
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL and so runs in parallel with copies and conversions
        for name, dtype, shape, size in entries:
            buffer = torch.empty(size, dtype=torch.uint8)
            view = memoryview(buffer.numpy())
            _read_into(file, view, path)
            if pending is not None:
                pending.result()
            pending = pool.submit(digest.update, view)
            yield name, buffer.view(getattr(torch, (DTYPES | CODES)[dtype])).view(shape)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(mismatch_message)


def _read_into(file: IO[bytes], view: memoryview, path: Path) -> None:
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled : filled + CHUNK_BYTES])
        if not count:
            raise DamagedFile(f"{path} ended while it was read; fetch or create it again.")
        filled += count


def _read_header(file: IO[bytes], path: Path) -> tuple[bytes, list[tuple[str, str, list[int], int]]]:
    """Read the header of a safetensors file.

    Returns:
        The bytes before the first tensor; and name, dtype, shape and size in bytes of each tensor, in file order.

    Raises:
        DamagedFile: the header is not valid, or the tensors do not fill the rest of the file without gap or overlap.
        UserError: a tensor has a dtype that weights do not have.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 0 < length <= min(size - 8, MAX_HEADER):
        raise DamagedFile(f"{path} is not a safetensors file, or is truncated; fetch or create it again.")
    header = file.read(length)
    entries = _parse_header(header, path)
    end = 0
    for name, _, _, start, stop in entries:
        if start != end:
            raise DamagedFile(f"{path} has a gap or an overlap before {to_printable(name)}; fetch or create it again.")
        end = stop
    if size != 8 + length + end:
        raise DamagedFile(f"{path} has {size} bytes, its header says {8 + length + end}; fetch or create it again.")
    return prefix + header, [(name, dtype, shape, stop - start) for name, dtype, shape, start, stop in entries]


def _parse_header(header: bytes, path: Path) -> list[tuple[str, str, list[int], int, int]]:
    """Return the entries of a header, see :func:`_parse_entry`, sorted by their offsets."""
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=dict_without_duplicates)
        content.pop("__metadata__", None)
        entries = [_parse_entry(name, entry, path) for name, entry in content.items()]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path} has a damaged header ({to_printable(error)}); fetch or create it again.") from None
    return sorted(entries, key=lambda entry: entry[3:])


def _parse_entry(name: str, entry: dict, path: Path) -> tuple[str, str, list[int], int, int]:
    """Return name, dtype, shape, start and end offset of a header entry.

    Raises:
        ValueError, KeyError, TypeError: the entry is malformed, or its offsets do not match its dtype and shape.
        UserError: the dtype is not one of :data:`DTYPES` and :data:`CODES`.
    """
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES | CODES:
        raise UserError(_wrong_type_message(path, name, dtype))
    numbers = [*shape, start, stop]
    if any(type(number) is not int or not 0 <= number < 2**50 for number in numbers) or len(shape) > MAX_RANK:
        raise ValueError(f"{name} has impossible sizes")
    if stop - start != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{name} has {stop - start} bytes for shape {shape}")
    return name, dtype, shape, start, stop


def _wrong_type_message(path: Path, name: object, dtype: object) -> str:
    return f"{path}: {to_printable(name)} has type {to_printable(dtype)}; weights are {', '.join(DTYPES.values())}."


# PyTorch -------------------------------------------------------------------------------------------


def _read_pickled(file: IO[bytes], path: Path, sha256: str | None, mismatch_message: str) -> Iterator[tuple]:
    with _anonymous_file() as copy:
        digest = _copy_and_hash(file, copy)
        if sha256 is not None and digest != sha256:
            raise UserError(mismatch_message)
        tensors = unpickle(Path(f"/dev/fd/{copy.fileno()}"), path)
    while tensors:  # pop each tensor, so that the caller can free it after its conversion
        name = next(iter(tensors))
        yield name, tensors.pop(name)


def _copy_and_hash(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy a file and return the SHA-256 of its bytes; a thread hashes each chunk while the next one is read."""
    digest = hashlib.sha256()
    pending: Future | None = None
    with ThreadPoolExecutor(1) as pool:
        while chunk := source.read(CHUNK_BYTES):
            if pending is not None:
                pending.result()
            pending = pool.submit(digest.update, chunk)
            target.write(chunk)
    target.flush()
    return digest.hexdigest()


def _anonymous_file() -> IO[bytes]:
    """Return an open file without a path, in memory where the system supports it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tuneline"), "w+b")
    return tempfile.TemporaryFile()


def unpickle(file: Path, path: Path) -> dict[str, "torch.Tensor"]:
    """Return the tensors that torch.save wrote into a file, by name, without running any code in it.

    Args:
        path: name of the file in error messages.

    Raises:
        UserError: the file holds other objects, or tensors that are sparse, quantized by PyTorch, or of a dtype other
            than those of :data:`DTYPES` and :data:`CODES`.
    """
    import pickle

    from transformers.modeling_utils import load_state_dict

    _check_not_compressed(file, path)
    try:
        content = load_state_dict(str(file))
    except pickle.UnpicklingError:
        raise DamagedFile(f"{path} holds more than tensors, which could run code, or is damaged; refused.") from None
    except Exception as error:  # on bytes that torch.save did not write, the unpickler raises errors of many types
        reason = to_printable(next(iter(str(error).strip().splitlines()), ""), 200) or type(error).__name__
        raise DamagedFile(f"{path} cannot be read ({reason}); fetch it again.") from None
    if not isinstance(content, dict) or not content:
        raise DamagedFile(f"{path} holds no tensors by name; it is not a checkpoint.")
    return {_checked_name(name, path): _checked_tensor(name, value, path) for name, value in content.items()}


def _check_not_compressed(file: Path, path: Path) -> None:
    """Check that a zip file is not a decompression bomb.

    Raises:
        DamagedFile: entries are compressed or declare more bytes than the file has, or the directory is damaged.
    """
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as start:
                if start.read(2) == b"PK":
                    raise DamagedFile(f"{path} is truncated; fetch it again.")
            return  # a plain pickle, as written before PyTorch 1.6
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except DamagedFile:
        raise
    except Exception as error:  # a damaged directory raises struct.error, UnicodeDecodeError and others
        raise DamagedFile(f"{path} has a damaged directory ({type(error).__name__}); fetch it again.") from None
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise DamagedFile(f"{path} is compressed, which torch.save never does; refused.")


def _checked_name(name: object, path: Path) -> str:
    if not isinstance(name, str) or len(name) > 1000:
        raise DamagedFile(f"{path} holds no tensors by name; it is not a checkpoint.")
    return name


def _checked_tensor(name: object, value: object, path: Path) -> "torch.Tensor":
    import torch

    label = f"{path}: {to_printable(name)}"
    if not isinstance(value, torch.Tensor):
        raise DamagedFile(
            f"{path} holds no tensors by name ({to_printable(name)} is not a tensor); it is not a checkpoint."
        )
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        raise DamagedFile(f"{label} is not a plain matrix of numbers (sparse, quantized or without data); refused.")
    if str(value.dtype).removeprefix("torch.") not in (DTYPES | CODES).values():
        raise DamagedFile(_wrong_type_message(path, name, value.dtype))
    if value.dim() > MAX_RANK or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DamagedFile(f"{label} has shape {to_printable(list(value.shape))}, more than the file holds; refused.")
    return value.detach()
