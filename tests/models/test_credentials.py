"""Credentials are masked in messages, logs, run states and webhooks."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import ROOT

from models.credentials import MASK, mask_credentials
from models.errors import UserError

# Characters of passwords in URLs. Slash, colon and @ should be percent-encoded, but often are not.
RAW = st.text("abcXYZ019-_~!$&*+,;=.%()äß密钥", min_size=4, max_size=20).map(lambda text: f"Q7{text}7Q")
SCHEMES = st.sampled_from(["http", "https", "ssh", "git", "ftp", "webdavs", "s3", "git+ssh"])
HOSTS = st.sampled_from(["host", "host.example:8080", "127.0.0.1", "[::1]:22", "仓库.example"])
AROUND = st.text("ab :'\"，。()\n", max_size=12)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run-cache is not for http: http://team:s3cret@host:9/x", "run-cache is not for http: http://host:9/x"),
        ("fatal: 'https://a-token@host/r.git' not found", "fatal: 'https://host/r.git' not found"),
        ("https://user:pa/ss@host/x", "https://host/x"),
        ("https://user:pa@ss@host/x", "https://host/x"),
        ("https://user:pw://x@host/", "https://host/"),
        ("http://a,http://u:p@h", "http://h"),
        ("ssh://user:pw@host:22/x", "ssh://host:22/x"),
        ("user:pw@host:repository", "host:repository"),
        ('"https:\\/\\/u:p@host\\/x"', 'host\\/x"'),
        ("地址：https://u:p@host，失败", "地址：https://host，失败"),
        ("https://host/x?a=1&token=abc&b=2#c", f"https://host/x?a=1&token={MASK}&b=2#c"),
        ("https://host/x?sv=1&sig=a%2Fb&X-Amz-Signature=12", f"https://host/x?sv=1&sig={MASK}&X-Amz-Signature={MASK}"),
        ("https://host/#access_token=abc", f"https://host/#access_token={MASK}"),
        ("config: secret_access_key = abc/def+1 and more", f"config: secret_access_key = {MASK} and more"),
        ("{'password': 'hu nter2', 'user': 'x'}", f"{{'password': {MASK}, 'user': 'x'}}"),
        ('password="not closed', f"password={MASK}"),
        ("AccountName=x;AccountKey=abc==;End=1", f"AccountName=x;AccountKey={MASK};End=1"),
        ("Authorization: Basic dGVhbTpzZWNyZXQ=", f"Authorization: Basic {MASK}"),
        ("Bearer abcdefghijklmnop1234", f"Bearer {MASK}"),
        ("The key AKIAABCDEFGHIJKLMNOP is unknown", f"The key {MASK} is unknown"),
        (f"ghp_{'a' * 36} hf_{'b' * 34} glpat-{'c' * 20}", f"{MASK} {MASK} {MASK}"),
    ],
)
def test_secrets_are_masked_and_other_text_stays(text, shown):
    assert mask_credentials(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@host/x",
        "git@host.example:a/b.git",
        "http://[::1]:8080/@x",
        "https://host:8080/@scope/package",
        "s3://bucket/a@b",
        "mailto:a@host.example",
        "https://host/x?page=2&sort=name",
        "tokens: 1200, tokens/s: 33, max_new_tokens=32, pad_token_id: 3",
        "no_secrets │ 3 rows │ 1.2 %",
        "the bearer of news, basic settings, authorization failed",
        "lora: rank=8; loss: 1.25\r 10%|█ | 1/10 [00:01<00:09]",
    ],
)
def test_text_without_secrets_stays(text):
    assert mask_credentials(text) == text


@settings(max_examples=50, deadline=None)
@given(SCHEMES, RAW, HOSTS, AROUND, AROUND)
def test_passwords_in_urls_are_masked(scheme, password, host, before, after):
    for user in (f"user:{password}", f"{password}:x-oauth", f"us@er:{password}", f":{password}", f"u:/{password}"):
        shown = mask_credentials(f"{before}{scheme}://{user}@{host}/path{after}")
        assert password not in shown
        assert host in shown
    value = "".join(letter for letter in password if letter.isalnum())
    assert value not in mask_credentials(f"{before}{scheme}://{host}/path?x=1&secret={value}{after}")


@given(st.text(st.characters(exclude_characters="@=:?#&;"), max_size=60))
def test_text_without_separators_of_urls_stays(text):
    shown = mask_credentials(text)
    assert shown == text or MASK in shown  # a bearer token, or a known format of keys


@pytest.mark.parametrize(
    "unit",
    ["://", "a://", "a://b:c/", "@", "a:b@", "://a@b:c/", "?", "?a", "?key=", "password", 'password="', "secret= ",
     "access_key_", ".", "-.", "Bearer a", "authorization: ", "AKIA", "[", "://[", "'", "\r", "a", "hf_", "ghp_a"],
)  # fmt: skip
def test_masking_takes_linear_time(unit):
    """A text of 4 times the length takes 4 times as long; quadratic time would take 16 times, and minutes."""

    def seconds(length: int) -> float:
        text = (unit * length)[:length]
        began = time.process_time()
        mask_credentials(text)
        return time.process_time() - began

    assert seconds(160_000) < 12 * max(seconds(40_000), 0.01)


def test_user_errors_log_lines_and_tracebacks_are_masked():
    assert str(UserError("https://a:b@host is away", "x")) == str(UserError("https://host is away", "x"))
    code = (
        "import logging\nfrom models.command_line import entry_point\n@entry_point\ndef main():\n"
        "    logging.getLogger('tuneline').info('from %s', 'http://team:s3cret@host/x')\n"
        "    try:\n        raise KeyError('http://team:s3cret@host/y')\n"
        "    except KeyError:\n        logging.getLogger('tuneline').exception('failed')\n"
        "    raise OSError(5, 'broken', 'http://team:s3cret@host/z')\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "s3cret" not in done.stderr
    assert all(f"http://host/{name}" in done.stderr for name in "xyz")


def test_output_is_copied_unchanged_except_for_credentials(tmp_path):
    def copied(*chunks: bytes) -> bytes:
        """Return the output of the program for these writes."""
        source, write = os.pipe()
        command = [sys.executable, "-I", "-S", str(ROOT / "models/credentials.py"), f"{source}:1"]
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(command, env={}, pass_fds=[source], stdout=out)
        os.close(source)
        for chunk in chunks:
            os.write(write, chunk)
            time.sleep(0.05)
        os.close(write)
        assert process.wait(20) == 0
        return (tmp_path / "out").read_bytes()

    assert copied(b"a\r\nb\rc\xff\xe5", b"\xa4\xb4", "尾".encode()) == b"a\r\nb\rc\xff\xe5\xa4\xb4" + "尾".encode()
    assert copied(b"from http://team:s3", b"cret@ho", b"st/x\nand on") == b"from http://host/x\nand on"
    long = b"x" * 300_000
    assert copied(long[:60_000], long[60_000:120_000], long[120_000:]) == long
