"""Tensors from the very bytes that are hashed, so that no file can be swapped between the check and its use.

safetensors files are read once, in the order of their bytes: each tensor is built from the buffer that a thread hashes
meanwhile. PyTorch's files are read at random places; they are copied into anonymous memory that no path names, hashed
on the way, and read from there. At most two tensors, or one such file, take host memory beside what the caller keeps.
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
from models.schemas import to_printable

if TYPE_CHECKING:
    import torch  # slow to import, and not needed to refuse

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER = 2**24  # bytes; that of ChatGLM-6B has 50,000
MAX_RANK = 8
CHUNK = 2**24
NUM_READERS = min(4, os.cpu_count() or 1)


class DamagedFile(UserError):
    """A file of tensors that cannot be read as what its name says."""


def is_complete(path: Path) -> bool:
    """Whether a weight file ends where it should: the end is what a half download lacks."""
    if path.suffix == ".bin":
        return zipfile.is_zipfile(path)  # torch.save writes a zip file, whose directory stands last
    try:
        with path.open("rb") as file:
            _read_header(file, path)
    except DamagedFile:
        return False
    return True


def read_tensors(path: Path, sha256: str | None, changed: str) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield name and tensor of a weight file, on the CPU. Trust them only after the last one.

    Args:
        sha256: of the file; None for a file that was written a moment ago.
        changed: the sentence for a file with another hash.

    Raises:
        UserError: the file has another hash, which shows after its last tensor at the latest, or cannot be read.
    """
    if not path.is_file():
        raise UserError(changed)
    with path.open("rb") as file:
        if path.suffix == ".bin":
            yield from _read_pickled(file, path, sha256, changed)
        else:
            yield from _read_safetensors(file, path, sha256, changed)


def read_weight_files(files: Sequence[tuple[Path, str, str]]) -> Iterator[tuple[Path, str, "torch.Tensor"]]:
    """Yield path, name and tensor of several weight files; :data:`READERS` of them are read and hashed at a time.

    One core hashes 1.2 GB/s, so that the 13 GB of ChatGLM-6B would wait for it longer than for disk and GPU together.

    Args:
        files: path, hash and the sentence for a file with another hash, as :func:`read_tensors` takes them.

    Raises:
        UserError: see :func:`read_tensors`.
    """
    waiting: Queue = Queue(NUM_READERS)
    is_abandoned = Event()

    def read(path: Path, sha256: str, changed: str) -> None:
        for name, tensor in read_tensors(path, sha256, changed):
            waiting.put((path, name, tensor))
            if is_abandoned.is_set():
                return

    with ThreadPoolExecutor(NUM_READERS) as pool:
        readers = [pool.submit(read, *file) for file in files]
        try:
            while not all(reader.done() for reader in readers) or not waiting.empty():
                with suppress(Empty):
                    yield waiting.get(timeout=0.01)
            for reader in readers:
                reader.result()
        finally:  # drain the queue, so that blocked readers see the flag
            is_abandoned.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(reader.done() for reader in readers):
                with suppress(Empty):
                    waiting.get(timeout=0.01)


def load_tensors(path: Path, sha256: str | None, changed: str) -> dict[str, "torch.Tensor"]:
    """All tensors of a weight file; see :func:`read_tensors`."""
    return dict(read_tensors(path, sha256, changed))


def load_pickled(path: Path) -> dict[str, "torch.Tensor"]:
    """All tensors of a file that torch.save wrote, whatever its name and hash; see :func:`unpickle`."""
    with path.open("rb") as file:
        return dict(_read_pickled(file, path, None, ""))


# safetensors ---------------------------------------------------------------------------------------


def _read_safetensors(file: IO[bytes], path: Path, sha256: str | None, changed: str) -> Iterator[tuple]:
    import torch

    start, entries = _read_header(file, path)
    digest = hashlib.sha256(start)
    pending: Future | None = None
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL, so that it runs beside copies and conversions
        for name, dtype, shape, size in entries:
            buffer = torch.empty(size, dtype=torch.uint8)
            view = memoryview(buffer.numpy())
            _fill(file, view, path)
            if pending is not None:
                pending.result()
            pending = pool.submit(digest.update, view)
            yield name, buffer.view(getattr(torch, DTYPES[dtype])).view(shape)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(changed)


def _fill(file: IO[bytes], view: memoryview, path: Path) -> None:
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled : filled + CHUNK])
        if not count:
            raise DamagedFile(f"{path} ended while it was read; fetch or make it again.")
        filled += count


def _read_header(file: IO[bytes], path: Path) -> tuple[bytes, list[tuple[str, str, list[int], int]]]:
    """The bytes before the first tensor; name, type, shape and bytes of each tensor, in the order of their bytes.

    Raises:
        Damaged: the header is none, or the tensors do not fill the rest of the file without gap and overlap.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 0 < length <= min(size - 8, MAX_HEADER):
        raise DamagedFile(f"{path} is no safetensors file, or was cut off; fetch or make it again.")
    header = file.read(length)
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repeats)
        content.pop("__metadata__", None)
        entries = sorted((_checked(name, entry, path) for name, entry in content.items()), key=lambda entry: entry[3:])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path} has a damaged header ({to_printable(error)}); fetch or make it again.") from None
    end = 0
    for name, _, _, start, stop in entries:
        if start != end:
            raise DamagedFile(f"{path} has a gap or an overlap before {to_printable(name)}; fetch or make it again.")
        end = stop
    if size != 8 + length + end:
        raise DamagedFile(f"{path} has {size} bytes, its header says {8 + length + end}; fetch or make it again.")
    return prefix + header, [(name, dtype, shape, stop - start) for name, dtype, shape, start, stop in entries]


def _without_repeats(pairs: list) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands twice")
    return content


def _checked(name: str, entry: dict, path: Path) -> tuple[str, str, list[int], int, int]:
    """Name, type, shape, first byte and the byte after the last of a header's entry.

    Raises:
        ValueError, KeyError, TypeError: it is no entry, or its bytes do not fit its type and shape.
        UserError: it has a type that weights do not have.
    """
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise UserError(f"{path}: {to_printable(name)} has type {to_printable(dtype)}; weights are {', '.join(DTYPES)}.")
    numbers = [*shape, start, stop]
    if any(type(number) is not int or not 0 <= number < 2**50 for number in numbers) or len(shape) > MAX_RANK:
        raise ValueError(f"{name} has impossible sizes")
    if stop - start != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{name} has {stop - start} bytes for shape {shape}")
    return name, dtype, shape, start, stop


# PyTorch -------------------------------------------------------------------------------------------


def _read_pickled(file: IO[bytes], path: Path, sha256: str | None, changed: str) -> Iterator[tuple]:
    digest = hashlib.sha256()
    with _anonymous_file() as private, ThreadPoolExecutor(1) as pool:
        pending: Future | None = None
        while chunk := file.read(CHUNK):
            if pending is not None:
                pending.result()
            pending = pool.submit(digest.update, chunk)
            private.write(chunk)
        if pending is not None:
            pending.result()
        private.flush()
        if sha256 is not None and digest.hexdigest() != sha256:
            raise UserError(changed)
        tensors = unpickle(Path(f"/dev/fd/{private.fileno()}"), path)
    while tensors:  # each can be freed once its user has converted it
        name = next(iter(tensors))
        yield name, tensors.pop(name)


def _anonymous_file() -> IO[bytes]:
    """A file that no path names, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tuneline"), "w+b")
    return tempfile.TemporaryFile()


def unpickle(file: Path, path: Path) -> dict[str, "torch.Tensor"]:
    """Tensors by name that torch.save wrote into ``file``; code in it is refused, not run.

    Args:
        path: what the sentences call the file.

    Raises:
        UserError: it holds anything else, or tensors that are not plain matrices of floating-point numbers.
    """
    import pickle

    from transformers.modeling_utils import load_state_dict

    _refuse_compressed(file, path)
    try:
        content = load_state_dict(str(file))
    except pickle.UnpicklingError:
        raise DamagedFile(f"{path} holds more than tensors, which could run code, or is damaged; refused.") from None
    except Exception as error:  # the unpickler fails in many ways on bytes that torch.save did not write
        reason = to_printable(next(iter(str(error).strip().splitlines()), ""), 200) or type(error).__name__
        raise DamagedFile(f"{path} cannot be read ({reason}); fetch it again.") from None
    if not isinstance(content, dict) or not content:
        raise DamagedFile(f"{path} holds no tensors by name; it is no checkpoint.")
    return {_checked_name(name, path): _checked_tensor(name, value, path) for name, value in content.items()}


def _refuse_compressed(file: Path, path: Path) -> None:
    """Raises Damaged: the zip entries are compressed or larger than the file, as in a decompression bomb."""
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as start:
                if start.read(2) == b"PK":
                    raise DamagedFile(f"{path} was cut off; fetch it again.")
            return  # the format before PyTorch 1.6
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except DamagedFile:
        raise
    except Exception as error:  # struct.error, UnicodeDecodeError and others, for damaged directories
        raise DamagedFile(f"{path} has a damaged directory ({type(error).__name__}); fetch it again.") from None
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise DamagedFile(f"{path} is compressed, which torch.save never does; refused.")


def _checked_name(name: object, path: Path) -> str:
    if not isinstance(name, str) or len(name) > 1000:
        raise DamagedFile(f"{path} holds no tensors by name; it is no checkpoint.")
    return name


def _checked_tensor(name: object, value: object, path: Path) -> "torch.Tensor":
    import torch

    what = f"{path}: {to_printable(name)}"
    if not isinstance(value, torch.Tensor):
        raise DamagedFile(f"{path} holds no tensors by name ({to_printable(name)} is none); it is no checkpoint.")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        raise DamagedFile(f"{what} is no plain matrix of numbers (sparse, quantized or without data); refused.")
    if str(value.dtype).removeprefix("torch.") not in DTYPES.values():
        raise DamagedFile(f"{what} has type {value.dtype}; weights are {', '.join(DTYPES.values())}.")
    if value.dim() > MAX_RANK or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DamagedFile(f"{what} has shape {to_printable(list(value.shape))}, more than the file holds; refused.")
    return value.detach()
