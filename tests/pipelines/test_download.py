"""Data sets by hub id, from a local server with the addresses of the Hugging Face Hub and of ModelScope."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from shared_data import ROOT

from stages.ingest import copy_raw_files

COMMIT, TOKEN = "a" * 40, "hf_" + "s" * 34
ROW = b'{"prompt": "\xe9\x97\xae", "response": "\xe7\xad\x94"}\n'
FILES = {"data/train.jsonl": ROW * 3, "big.csv": b"q,a\n1,2\n", "load.py": b"x", "README.md": b"x",
         "dataset_infos.json": b"{}"}  # fmt: skip


class Hub:
    """A server of both hubs.

    Attributes:
        files: content by path in the repository.
        promised: content that the list of files promises, where it differs.
        requests: path and Authorization header of every request.
        interruptions: of a path, after how many bytes its next answers end.
        ranges: Range header of every request that has one.
        knows_ranges: whether a request for the rest of a file gets the rest alone.
    """

    def __init__(self):
        self.files, self.promised, self.requests = dict(FILES), {}, []
        self.interruptions, self.ranges, self.knows_ranges = {}, [], True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.requests.append((self.path, self.headers.get("Authorization")))
                status, content = hub.answer(urlsplit(self.path))
                if requested := self.headers.get("Range"):
                    hub.ranges.append(requested)
                    if hub.knows_ranges:
                        status, content = 206, content[int(requested.removeprefix("bytes=").rstrip("-")) :]
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                name = next((name for name in hub.interruptions if name in self.path), None)
                ends = hub.interruptions.get(name)
                self.wfile.write(content[: ends.pop(0)] if ends else content)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, url) -> tuple[int, bytes]:
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        listed = self.files | self.promised
        if url.path in ("/api/datasets/tea/house", "/api/datasets/tea/house/revision/v1"):
            siblings = [self.describe_sibling(path, content) for path, content in listed.items()]
            return 200, json.dumps({"id": "tea/house", "sha": COMMIT, "siblings": siblings}).encode()
        prefix = f"/datasets/tea/house/resolve/{COMMIT}/"
        if url.path.startswith(prefix):
            return 200, self.files[url.path.removeprefix(prefix)]
        if url.path == "/api/v1/datasets/tea/house":
            return 200, b'{"Code": 200, "Data": {"Id": 7}}'
        if url.path == "/api/v1/datasets/7/repo/tree" and query["Revision"] in ("master", "v1"):
            first = (int(query["PageNumber"]) - 1) * int(query["PageSize"])
            entries = [{"Path": "data", "Type": "tree"}] + [
                {"Path": path, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
                for path, content in listed.items()
            ]
            data = {"Files": entries[first : first + int(query["PageSize"])], "LatestCommitter": {"Id": COMMIT}}
            return 200, json.dumps({"Code": 200, "Data": data}).encode()
        if url.path == "/api/v1/datasets/tea/house/repo":
            return 200, self.files[query["FilePath"]]
        return 404, b"{}"

    @staticmethod
    def describe_sibling(path: str, content: bytes) -> dict:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        sibling = {"rfilename": path, "size": len(content), "blobId": blob}
        if path.startswith("big"):
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 9}
        return sibling


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.server.shutdown()


def download(hub: Hub, name: str, out) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "MODELSCOPE_DOMAIN": hub.url, "HF_TOKEN": TOKEN,
                   "MODELSCOPE_API_TOKEN": TOKEN, "TUNELINE_LANG": "en"}  # fmt: skip
    command = [sys.executable, "-m", "pipelines.download", name, "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "revision"), [("hf:tea/house", None), ("hf:tea/house@v1", "v1"),
                                                ("modelscope:tea/house@v1", "v1")])  # fmt: skip
def test_data_files_are_downloaded_with_a_record_that_ingest_copies(hub, tmp_path, name, revision):
    out = tmp_path / "house"
    done = download(hub, name, out)
    assert done.returncode == 0, done.stderr
    assert f"Set ingest.source in params.yaml to {out}." in done.stdout
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        ".tuneline-download", "data/train.jsonl", "big.csv",
    }  # fmt: skip
    records = {record["file"]: record for record in copy_raw_files(out, tmp_path / "raw")}
    hub_of_name = name.partition(":")[0]
    assert records["data/train.jsonl"]["hub"] == {
        "hub": hub_of_name, "id": "tea/house", "revision": revision, "commit": COMMIT,
        "sha256": hashlib.sha256(ROW * 3).hexdigest(), "unchanged": True,
    }  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    assert {authorization for _, authorization in hub.requests} == {f"Bearer {TOKEN}"}
    assert not any("load.py" in path or "README" in path for path, _ in hub.requests)
    assert download(hub, name, out).returncode == 0  # an earlier download is replaced


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_interrupted_download_is_resumed(hub, tmp_path, knows_ranges):
    hub.files["data/train.jsonl"] = ROW * 100_000
    hub.interruptions["data/train.jsonl"], hub.knows_ranges = [1_000_000, 500_000, 0], knows_ranges
    done = download(hub, "hf:tea/house", tmp_path / "house")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "house/data/train.jsonl").read_bytes() == ROW * 100_000
    assert len(hub.ranges) >= 2
    if knows_ranges:
        assert [int(value.removeprefix("bytes=").rstrip("-")) for value in hub.ranges] == sorted(
            int(value.removeprefix("bytes=").rstrip("-")) for value in hub.ranges
        )


def test_all_pages_of_a_long_list_are_read(hub, tmp_path):
    hub.files = {f"{number}.jsonl": ROW for number in range(250)}
    assert download(hub, "modelscope:tea/house", tmp_path / "house").returncode == 0
    assert len(list((tmp_path / "house").glob("*.jsonl"))) == 250


@pytest.mark.parametrize("name", ["hf:tea/house", "modelscope:tea/house"])
@pytest.mark.parametrize("path", ["data/train.jsonl", "big.csv"])
@pytest.mark.parametrize("promised", [b"y" * 5, b"y" * 500, None])
def test_other_bytes_than_promised_are_refused(hub, tmp_path, name, path, promised):
    hub.promised = {path: promised or FILES[path].replace(FILES[path][-2:], b"!!")}
    done = download(hub, name, tmp_path / "house")
    assert done.returncode == 1
    assert f"error: {path} has other bytes than the hub promises" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../out.jsonl", "/tmp/out.jsonl", "a\\..\\out.jsonl"])
def test_path_out_of_the_folder_is_refused(hub, tmp_path, path):
    hub.files = {path: ROW}
    for name in ("hf:tea/house", "modelscope:tea/house"):
        done = download(hub, name, tmp_path / "house")
        assert "leads out of the folder" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:tea/shop", "hf:tea/shop: the hub answered with status 404; check the name, or the token"),
        ("hf:tea/house@v9", "hf:tea/house, revision v9: the hub answered with status 404"),
        ("modelscope:tea/shop", "the hub answered with status 404; check the name"),
        ("tea/house", "names no data set; write hf:OWNER/NAME"),
    ],
)
def test_wrong_names_are_one_message(hub, tmp_path, name, message):
    done = download(hub, name, tmp_path / "house")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_hub_that_cannot_be_reached_and_foreign_folder_are_one_message(hub, tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house/mine.jsonl").write_bytes(ROW)
    assert "is not an earlier download; name a new folder" in download(hub, "hf:tea/house", tmp_path / "house").stderr
    hub.url = "http://127.0.0.1:9"
    for name in ("hf:tea/house", "modelscope:tea/house"):
        done = download(hub, name, tmp_path / "new")
        assert done.returncode == 1
        assert "cannot be reached" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
