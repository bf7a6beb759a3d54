"""python -m pipelines.review: sessions in the terminal, the page for a browser, and the import of its decisions."""

import base64
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from shared_data import ROOT, write_rows

from formats.review_decisions import ReviewDecision, hash_content, read_decisions
from models.errors import UserError
from pipelines import review, review_terminal
from pipelines.review_page import render_page
from pipelines.review_rows import check_edited, load_rows, select_rows, split_at_faults
from pipelines.review_terminal import ReviewSession, edit_text

PLACEHOLDER = {"context": "你叫什么？", "target": "我是 <NAME>，</script>很高兴认识你。", "note": 1}
PHONE = {"context": "怎么联系你？", "target": "请打 13812345678 找我。"}
LONG = {"context": "讲个故事", "target": "\n".join(f"第 {line} 行" for line in range(60))}
ROWS = {
    "data/quarantine/rows.jsonl": [
        (PLACEHOLDER, "no_placeholders", "quarantine", "<NAME>"),
        (PHONE, "no_personal_data", "quarantine", "mobile phone 138***"),
        (PLACEHOLDER | {"x": 1}, "unique", "quarantine", "rows.jsonl:1"),
    ],
    "data/warned.jsonl": [(LONG, "answer_whole", "warn", "第 59 行")],
    "data/question_fit.jsonl": [(LONG, "question_fit", "warn", 1.25)],
}


def content_of(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False)


def hash_of(row: dict) -> str:
    return hash_content(content_of(row).encode())


@pytest.fixture
def workspace(tmp_path, monkeypatch, base_folder):
    """A project with rows to review."""
    for path, rows in ROWS.items():
        lines = []
        for number, (row, check, severity, seen) in enumerate(rows, 1):
            failed = [{"check": check, "severity": severity, "seen": seen, "limit": None}]
            lines.append({"file": "rows.jsonl", "line": number, "content": content_of(row), "failed": failed})
        write_rows(tmp_path / path, lines)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "models/weights").mkdir(parents=True)
    (tmp_path / "models/weights/tokenizer").symlink_to(base_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TUNELINE_LANG", "en")
    return tmp_path


@pytest.fixture
def rows(workspace):
    return load_rows(unmasked=False)


class Terminal:
    """A session with typed lines; ``shown`` is what it printed."""

    def __init__(self, rows, typed, decisions=None, height=40):
        self.decisions = {} if decisions is None else decisions
        self.saved, self.prompts, lines = [], [], iter(typed)
        out = StringIO()

        def read_line(prompt):
            self.prompts.append(prompt)
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        console = Console(file=out, width=60, height=height, markup=False, highlight=False, emoji=False)
        self.session = ReviewSession(
            rows, self.decisions, lambda: self.saved.append(dict(self.decisions)), console, read_line
        )
        self.session.run()
        self.shown = out.getvalue()


# Rows ----------------------------------------------------------------------------------------------


def test_rows_are_merged_and_masked_and_copies_hidden(rows):
    assert [row.checks for row in rows] == [["no_placeholders"], ["no_personal_data"], ["answer_whole", "question_fit"]]
    assert [row.content_sha256 for row in rows] == [hash_of(row) for row in (PLACEHOLDER, PHONE, LONG)]
    assert list(rows[0].unread) == ["note"]
    assert rows[1].content is None
    assert "138***" in rows[1].messages[1]["content"]
    assert load_rows(unmasked=True)[1].content == content_of(PHONE)


def test_rows_are_selected_by_check_and_decision(rows):
    assert select_rows(rows, ["question_fit"]) == [rows[2]]
    assert select_rows(rows, [], {rows[0].content_sha256}) == rows[1:]
    with pytest.raises(UserError, match=r"'typo'.*answer_whole \(1\)"):
        select_rows(rows, ["typo"])


def test_a_missing_gate_and_a_damaged_file_are_reported(workspace, capfd):
    (workspace / "data/warned.jsonl").write_text('{"line": 1}\n')
    with pytest.raises(UserError, match="cannot be reviewed"):
        load_rows(unmasked=False)
    assert "data/warned.jsonl, line 1" in capfd.readouterr().err
    (workspace / "data/warned.jsonl").unlink()
    with pytest.raises(UserError, match="dvc repro validate"):
        load_rows(unmasked=False)


def test_excerpts_of_faults_are_marked():
    failed = [{"seen": 0.9}, {"seen": "absent"}, {"seen": "<NAME>…"}]
    assert split_at_faults("a<NAME>b", failed) == [("a", False), ("<NAME>", True), ("b", False)]
    assert split_at_faults("找 138***", [{"seen": "mobile phone 138***"}]) == [("找 ", False), ("138***", True)]


# Terminal ------------------------------------------------------------------------------------------


def test_each_decision_has_a_reason_and_is_saved_at_once(rows):
    terminal = Terminal(rows, ["k", "the subject", "d", "", "n"])
    first, second = (terminal.decisions[row.content_sha256] for row in rows[:2])
    assert (first.decision, first.reason, first.checks) == ("keep", "the subject", ["no_placeholders"])
    assert (second.decision, second.reason) == ("drop", "the subject")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", first.date)
    assert [len(saved) for saved in terminal.saved] == [1, 2]
    assert terminal.session.position == 3


def test_keep_is_refused_for_a_required_check(rows):
    failing = replace(rows[0], failed=[{"check": "no_leakage", "severity": "quarantine", "seen": "", "limit": None}])
    terminal = Terminal([failing], ["k", "q"])
    assert terminal.decisions == {}
    assert "no_leakage: a required check" in " ".join(terminal.shown.split())


def test_no_decision_without_a_reason_and_undo_restores_the_former_one(rows):
    terminal = Terminal(rows, ["k", ""])
    assert terminal.decisions == {}
    assert "needs a reason" in terminal.shown
    former = ReviewDecision(content_sha256=rows[0].content_sha256, decision="keep", reason="former")
    terminal = Terminal(rows, ["d", "x", "d", "y", "u", "u", "u", "q"], {rows[0].content_sha256: former})
    assert terminal.decisions == {rows[0].content_sha256: former}
    assert terminal.session.position == 0
    assert "no decision of this session" in terminal.shown


def test_long_rows_are_paged_and_control_characters_are_visible(rows):
    terminal = Terminal(rows[2:], ["", "", "", "", "n"], height=20)
    assert terminal.prompts[0].startswith("Enter: more")
    assert all(f"第 {line} 行" in terminal.shown for line in range(60))
    assert review_terminal._printable("a\x1b[2Jb\tc\nd") == "a\\u001b[2Jb  c\nd"


def test_an_edited_row_is_checked_at_once(rows, monkeypatch, tmp_path):
    fixed = content_of({"context": "你叫什么？", "target": "我是小茶。"})
    texts = iter(["not JSON", content_of(PLACEHOLDER), fixed])
    monkeypatch.setattr(review_terminal, "edit_text", lambda text: next(texts))
    terminal = Terminal(rows, ["e", "y", "n", "y", "named", "q"])
    decision = terminal.decisions[rows[0].content_sha256]
    assert (decision.decision, decision.edited) == ("edit", json.loads(fixed))
    assert "The text is not a row" in terminal.shown
    assert "no_placeholders · quarantine: <NAME>" in terminal.shown
    assert "passes all row checks" in terminal.shown


def test_a_masked_row_opens_in_no_editor(rows):
    terminal = Terminal(rows[1:], ["e", "q"])
    assert "start with --unmasked" in terminal.shown


def test_the_editor_of_the_environment_is_used(monkeypatch, tmp_path):
    editor = tmp_path / "my editor"
    editor.write_text('#!/bin/sh\nsed -i s/old/new/ "$2"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", f"'{editor}' --wait")
    assert edit_text("old row") == "new row"
    monkeypatch.setenv("VISUAL", "false")
    with pytest.raises(UserError, match="exit code 1"):
        edit_text("")
    monkeypatch.setenv("VISUAL", "/no/such/editor")
    with pytest.raises(UserError, match="cannot be run"):
        edit_text("")


def test_checks_of_edited_rows_are_those_of_the_gate(workspace):
    good, blank = check_edited([{"context": "你好", "target": "你好，请说。"}, {"context": "你好", "target": " "}])
    assert (good.checks, blank.checks) == ([], ["nothing_blank"])


def test_a_session_in_a_real_terminal_resumes_where_it_stopped(workspace):
    def run(typed: str) -> str:
        """Run the command on a pseudo-terminal and return its output."""
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "pipelines.review"]
        process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        os.write(leader, typed.encode())
        output = b""
        while chunk := read_chunk(leader):
            output += chunk
        assert process.wait() == 0, output.decode(errors="replace")
        return output.decode()

    first = run("n\nk\nfine\nq\n")
    assert "[1/3]" in first
    assert "1 decisions in data/decisions.jsonl" in first
    assert list(read_decisions(Path("data/decisions.jsonl"))) == [hash_of(PHONE)]
    assert "[2/2]" in run("q\n")


def read_chunk(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux reports the end of a pseudo-terminal as an error
        return b""


def test_without_a_terminal_there_is_a_sentence(workspace):
    done = subprocess.run([sys.executable, "-m", "pipelines.review"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: A review needs a terminal; run it in one, or write a page for the browser with --html FILE.\n"
    )


# Page ----------------------------------------------------------------------------------------------


def test_the_page_shows_rows_escaped_and_masked_without_a_network(rows):
    page = render_page(rows, {})
    assert "13812345678" not in page
    assert "&lt;/script&gt;" in page
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert page.count('<span lang="en">') == page.count('<span lang="zh">')


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_page_works_by_keyboard_and_its_file_can_be_imported(workspace, rows):
    script = """
    const typed = key => new KeyboardEvent("keydown", {key, bubbles: true});
    const press = (key, target = document.body) => target.dispatchEvent(typed(key));
    const decide = (key, reason) => { press(key); byId("reason").value = reason; press("Enter", byId("reason")); };
    decide("k", "fine </b>"); decide("d", "private"); press("u"); decide("d", "private"); press("e");
    current().querySelector("textarea").value = '{"context": "你好", "target": " "}';
    byId("reason").value = "shorter"; press("Enter", byId("reason"));
    document.title = btoa(unescape(encodeURIComponent(lines())));
    """
    page = render_page(rows, {}).replace("\nshow();\n</script>", f"\nshow();\n{script}</script>")
    (workspace / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={workspace}/profile", "--dump-dom"]
    command = ["chromium", *options, (workspace / "page.html").as_uri()]
    document = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    encoded = re.search(r"<title>([^<]*)</title>", document)[1]
    (workspace / "downloaded.jsonl").write_bytes(base64.b64decode(encoded))
    decisions = read_decisions(workspace / "downloaded.jsonl")
    assert {
        row: decisions[hash_of(row_)].decision for row, row_ in (("p", PLACEHOLDER), ("t", PHONE), ("l", LONG))
    } == {
        "p": "keep",
        "t": "drop",
        "l": "edit",
    }


def test_imported_decisions_are_merged_and_their_edits_checked(workspace, capsys):
    def record(row: dict, decision: str, date: str, **fields) -> dict:
        return {"content_sha256": hash_of(row), "decision": decision, "reason": "r", "date": date, **fields}

    write_rows(
        workspace / "data/decisions.jsonl", [record(PLACEHOLDER, "keep", "2026-02"), record(PHONE, "keep", "2026-02")]
    )
    blank = {"context": "你好", "target": " "}
    imported = [
        record(PLACEHOLDER, "drop", "2026-01"),
        record(PHONE, "drop", "2026-03"),
        record(LONG, "edit", "2026-03", edited=blank),
    ]
    review.import_decisions(write_rows(workspace / "new.jsonl", imported))
    merged = read_decisions(workspace / "data/decisions.jsonl")
    assert [merged[hash_of(row)].decision for row in (PLACEHOLDER, PHONE, LONG)] == ["keep", "drop", "edit"]
    printed = capsys.readouterr().out
    assert "3 decisions read: 1 new, 1 replace an earlier one." in printed
    assert "still fails nothing_blank" in printed
    (workspace / "new.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        review.import_decisions(workspace / "new.jsonl")
