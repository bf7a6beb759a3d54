"""Download the data files of a data set from the Hugging Face Hub or ModelScope; run by :mod:`pipelines.download`.

Writes the files and a record of their origin (hub, id, revision, commit, sizes and hashes) to a folder, which replaces
an earlier download. Code of the repository is never downloaded. Fails if the hub cannot be reached, has no such data
set or no data files in it, or sends other bytes than its list of files promises. A broken connection is resumed where
it ended.

The hub's address is that of its own tools: ``HF_ENDPOINT`` (a mirror) and ``MODELSCOPE_DOMAIN``. A token is read from
``HF_TOKEN`` or the login of ``hf auth login``, and from ``MODELSCOPE_API_TOKEN``; it is sent to the hub alone.
"""

import argparse
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, urlencode

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from formats.foreign_files import data_kind
from formats.raw_rows import HUB_RECORD
from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write_folder, sha256_of, write_json

log = logging.getLogger("tuneline.download")
_DATASET = re.compile(r"(?P<hub>hf|modelscope):(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# Files with the suffix of data that describe the data set.
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "configuration.json",
             "config.json"}  # fmt: skip
_PAGE_FILES = 100  # files per page of ModelScope's list
_TIMEOUT = httpx.Timeout(30, read=120)  # seconds
_ATTEMPTS = 6  # requests for a file, over a minute, while its connection breaks


@dataclass(frozen=True)
class HubFile:
    """A file of a data set.

    Attributes:
        path: path in the repository.
        url: address of its content.
        size, sha256, git_sha1: as the hub promises; None where it does not say.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class HubDataset:
    """A data set at one commit.

    Attributes:
        endpoint: address of the hub.
        commit: the commit that the revision named; None if the hub does not say.
        headers: headers of requests to the hub, with the token.
    """

    endpoint: str
    commit: str | None
    files: list[HubFile]
    headers: dict[str, str]


def download(name: str, out: Path) -> dict:
    """Download the data files of a data set to a folder, and return the record that is written there.

    Args:
        name: ``hf:OWNER/NAME`` or ``modelscope:OWNER/NAME``, optionally with ``@REVISION``.

    Raises:
        UserError: the name is none, the folder has other files, the hub fails, or the bytes are not those it promises.
    """
    match = _DATASET.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name!r} names no data set; write hf:OWNER/NAME or modelscope:OWNER/NAME, and maybe @REVISION."
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / HUB_RECORD).is_file())):
        raise UserError(f"--out: {out} exists and is not an earlier download; name a new folder.")
    shown = name.replace("@", ", revision ")  # hf:NAME@REVISION: would be masked like user:password@host:
    find_dataset = {"hf": find_on_hugging_face, "modelscope": find_on_modelscope}[match["hub"]]
    try:
        dataset = find_dataset(match["id"], match["revision"])
        files = _select_data_files(dataset.files, shown)
        with atomic_write_folder(out) as folder, httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
            entries = [_download_file(client, file, folder, dataset.headers) for file in files]
            record = {"hub": match["hub"], "id": match["id"], "revision": match["revision"], "commit": dataset.commit}
            record |= {"endpoint": dataset.endpoint, "files": entries}
            write_json(folder / HUB_RECORD, record)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        hint = "check the name, or the token" if status in (401, 403, 404) else "try again later"
        raise UserError(f"{shown}: the hub answered with status {status}; {hint}.") from None
    except httpx.HTTPError as error:
        raise UserError(
            f"{shown}: the hub cannot be reached ({type(error).__name__}); check the network, or name a mirror "
            "(HF_ENDPOINT)."
        ) from None
    return record


def _select_data_files(files: list[HubFile], name: str) -> list[HubFile]:
    """Return the data files.

    Raises:
        UserError: there are none, or a path leads out of the folder.
    """
    selected = [file for file in files if data_kind(file.path) and PurePosixPath(file.path).name not in _METADATA]
    for file in selected:
        parts = PurePosixPath(file.path).parts
        if file.path.startswith("/") or ".." in parts or "\\" in file.path or not file.path.isprintable():
            raise UserError(
                f"{name} has a file with the path {file.path!a}, which leads out of the folder; do not use it."
            )
    if not selected:
        raise UserError(f"{name} has no data file such as .jsonl, .csv or .parquet; name another data set.")
    return selected


def _download_file(client: httpx.Client, file: HubFile, folder: Path, headers: dict[str, str]) -> dict:
    """Download one file, verify it, and return its entry in the record.

    Raises:
        UserError: its size or hash is not the promised one.
    """
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"desc": file.path, "unit": "B", "unit_scale": True, "delay": 2, "total": file.size}
    with path.open("wb") as target, tqdm(**progress) as bar:
        _receive(client, file, headers, target, bar)
    size, sha256 = path.stat().st_size, sha256_of(path)
    is_promised = (
        file.size in (None, size) and file.sha256 in (None, sha256) and file.git_sha1 in (None, _git_sha1_of(path))
    )
    if not is_promised:
        raise UserError(f"{file.path} has other bytes than the hub promises (size or hash); download it again.")
    return {"file": file.path, "bytes": size, "sha256": sha256}


@retry(
    retry=retry_if_exception_type(httpx.TransportError),
    stop=stop_after_attempt(_ATTEMPTS),
    wait=wait_exponential(max=30),
    reraise=True,
)
def _receive(client: httpx.Client, file: HubFile, headers: dict[str, str], target: BinaryIO, bar: tqdm) -> None:
    """Append the bytes that a file still lacks: after an interruption, the request asks for the rest alone."""
    received = target.tell()
    ranges = {"Range": f"bytes={received}-"} if received else {}
    with client.stream("GET", file.url, headers=headers | ranges) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the interruption came after the last byte
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:  # the hub sends the whole file again
            target.seek(0)
            target.truncate()
            bar.reset()
        for block in response.iter_bytes():
            target.write(block)
            bar.update(len(block))
            if file.size is not None and target.tell() > file.size:
                return


def _git_sha1_of(path: Path) -> str:
    """Return the SHA-1 by which git names a file, which is hashed with its size in front."""
    sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha1.update(block)
    return sha1.hexdigest()


# Hugging Face --------------------------------------------------------------------------------------


def find_on_hugging_face(name: str, revision: str | None) -> HubDataset:
    """Return a data set of the Hugging Face Hub, or of the mirror that ``HF_ENDPOINT`` names.

    Raises:
        UserError: the answer is not that of such a hub.
        httpx.HTTPError: the hub cannot be reached, or has no such data set or revision.
    """
    from huggingface_hub import constants, get_token

    endpoint, token = constants.ENDPOINT, get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # By httpx and not HfApi, whose exceptions change with its HTTP library.
    url = f"{endpoint}/api/datasets/{name}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
    try:
        info = httpx.get(url, params={"blobs": True}, headers=headers, follow_redirects=True, timeout=_TIMEOUT)
        info = info.raise_for_status().json()
        commit = info["sha"]
        files = [
            _describe_sibling(sibling, f"{endpoint}/datasets/{name}/resolve/{commit}") for sibling in info["siblings"]
        ]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"hf:{name}: {endpoint} is no Hugging Face Hub; correct HF_ENDPOINT.") from None
    return HubDataset(endpoint, commit, files, headers)


def _describe_sibling(sibling: dict, folder_url: str) -> HubFile:
    path, size, lfs = sibling["rfilename"], sibling.get("size"), sibling.get("lfs")
    git_sha1 = None if lfs or size is None else sibling.get("blobId")
    return HubFile(path, f"{folder_url}/{quote(path)}", size, lfs["sha256"] if lfs else None, git_sha1)


# ModelScope ----------------------------------------------------------------------------------------


def find_on_modelscope(name: str, revision: str | None) -> HubDataset:
    """Return a data set of ModelScope; the default revision is ``master``.

    Raises:
        UserError: there is no such data set or revision, or the answer is not ModelScope's.
        httpx.HTTPError: the hub cannot be reached.
    """
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    endpoint = domain.rstrip("/") if "://" in domain else f"https://{domain}"
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    revision = revision or "master"
    dataset_url = f"{endpoint}/api/v1/datasets/{name}"
    try:
        with httpx.Client(headers=headers, follow_redirects=True, timeout=_TIMEOUT) as client:
            identifier = _get_data(client, dataset_url)["Id"]
            pages = list(_list_pages(client, f"{endpoint}/api/v1/datasets/{identifier}/repo/tree", revision))
        commit = (pages[0].get("LatestCommitter") or {}).get("Id")
        entries = [entry for page in pages for entry in page["Files"] if entry["Type"] != "tree"]
        files = [
            HubFile(
                path=entry["Path"],
                url=_modelscope_url(dataset_url, revision, entry["Path"]),
                size=entry.get("Size"),
                sha256=entry.get("Sha256") or None,
            )
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"modelscope:{name}, revision {revision}, is not found, or {endpoint} is no ModelScope hub; check the name."
        ) from None
    return HubDataset(endpoint, commit, files, headers)


def _modelscope_url(dataset_url: str, revision: str, path: str) -> str:
    return f"{dataset_url}/repo?{urlencode({'Source': 'SDK', 'Revision': revision, 'FilePath': path})}"


def _list_pages(client: httpx.Client, url: str, revision: str) -> Iterator[dict]:
    number = 1
    while True:
        page = _get_data(
            client, url, Revision=revision, Root="/", Recursive="True", PageNumber=number, PageSize=_PAGE_FILES
        )
        yield page
        if len(page["Files"]) < _PAGE_FILES:
            return
        number += 1


def _get_data(client: httpx.Client, url: str, **parameters: str | int) -> dict:
    response = client.get(url, params=parameters)
    response.raise_for_status()
    return response.json()["Data"]


# Command -------------------------------------------------------------------------------------------


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Download the data files of a data set from a hub.")
    parser.add_argument("dataset", help="hf:OWNER/NAME or modelscope:OWNER/NAME, optionally with @REVISION")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files and the record of their origin")
    arguments = parser.parse_args()
    record = download(arguments.dataset, arguments.out)
    size = sum(file["bytes"] for file in record["files"])
    log.info("downloaded %d files, %d bytes, commit %s", len(record["files"]), size, record["commit"] or "unknown")


if __name__ == "__main__":
    main()
