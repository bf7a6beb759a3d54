"""A review in the terminal: one row after another, each kept, dropped or edited with a reason."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.segment import Segment
from rich.text import Text

from formats.params_schema import required_checks
from formats.review_decisions import ReviewDecision
from models.errors import UserError
from pipelines.processes import run_in_terminal
from pipelines.review_rows import ReviewRow, check_edited, split_at_faults
from texts import translatable, translate

KEEP, DROP, EDIT, NEXT, BACK, UNDO, QUIT, HELP = "k", "d", "e", "n", "b", "u", "q", "?"
COMMANDS = {
    KEEP: translatable("keep: the row is used although it fails these checks"),
    DROP: translatable("drop: the row is quarantined"),
    EDIT: translatable("edit: open the row in $EDITOR and check it again"),
    NEXT: translatable("next row without a decision; Enter shows the rest of a long row first"),
    BACK: translatable("previous row"),
    UNDO: translatable("undo the last decision of this session"),
    QUIT: translatable("quit; the next session begins at this row"),
    HELP: translatable("show this list"),
}
PROMPT = "[k/d/e/n/b/u/q/?] "
_RESERVED_LINES = 4  # of the terminal, below a page of a row
_ROLES = {"system": translatable("system"), "user": translatable("user"), "assistant": translatable("assistant")}


class ReviewSession:
    """A person's way through the rows.

    Args:
        rows: rows to review.
        decisions: by hash of the row; changed by the session.
        save: called after each change of a decision.
        read_line: shows a prompt and returns a line of input; raises EOFError at its end.

    Attributes:
        position: index of the current row.
    """

    def __init__(
        self,
        rows: Sequence[ReviewRow],
        decisions: MutableMapping[str, ReviewDecision],
        save: Callable[[], None],
        console: Console,
        read_line: Callable[[str], str],
        position: int = 0,
        unmasked: bool = False,
    ):
        self.rows, self.decisions, self.position = rows, decisions, position
        self._save, self._console, self._read_line, self._unmasked = save, console, read_line, unmasked
        self._history: list[tuple[int, ReviewDecision | None]] = []  # position and former decision
        self._last_reason = ""

    def run(self) -> None:
        """Show rows until the last one is passed or the person quits."""
        with suppress(EOFError):
            while self.position < len(self.rows):
                command = self._ask()
                if command == QUIT:
                    return
                self._execute(command)

    # Input -----------------------------------------------------------------------------------------

    def _ask(self) -> str:
        """Show the current row page by page, and return the command for it."""
        pages = self._pages(self.rows[self.position])
        for index, page in enumerate(pages):
            self._console.print(page)
            more = [translate("Enter: more")] if index + 1 < len(pages) else []
            if command := self._read_line(" ".join((*more, PROMPT))).strip().lower():
                return command
        return NEXT

    def _execute(self, command: str) -> None:
        if command == KEEP:
            self._keep()
        elif command == DROP:
            self._decide("drop")
        elif command == EDIT:
            self._edit()
        elif command == NEXT:
            self.position += 1
        elif command == BACK:
            self.position = max(0, self.position - 1)
        elif command == UNDO:
            self._undo()
        else:
            self._help()

    def _ask_reason(self) -> str:
        """Return the reason of a decision; an empty line repeats the last one, and cancels if there is none."""
        label, hint = translate("Reason"), f" [{self._last_reason}]" if self._last_reason else ""
        reason = self._read_line(f"{label}{hint}: ").strip()[:1000] or self._last_reason
        if not reason:
            self._say(translatable("A decision needs a reason; nothing was decided."))
        return reason

    # Decisions -------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Keep the row, unless it fails a required check, which no decision overrides."""
        if failed := [name for name in self.rows[self.position].checks if name in required_checks()]:
            self._say(
                translatable("{checks}: a required check, which keep does not override. Edit the row, or drop it."),
                checks=", ".join(failed),
            )
        else:
            self._decide("keep")

    def _decide(self, decision: str, edited: dict | None = None, checks: Sequence[str] | None = None) -> None:
        row = self.rows[self.position]
        if not (reason := self._ask_reason()):
            return
        self._last_reason = reason
        self._history.append((self.position, self.decisions.get(row.content_sha256)))
        self.decisions[row.content_sha256] = ReviewDecision(
            content_sha256=row.content_sha256,
            decision=decision,
            reason=reason,
            checks=list(dict.fromkeys(row.checks if checks is None else checks)),
            edited=edited,
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        self._save()
        self.position += 1

    def _undo(self) -> None:
        if not self._history:
            self._say(translatable("There is no decision of this session to undo; --all shows decided rows again."))
            return
        self.position, former = self._history.pop()
        content_sha256 = self.rows[self.position].content_sha256
        if former is None:
            del self.decisions[content_sha256]
        else:
            self.decisions[content_sha256] = former
        self._save()

    def _edit(self) -> None:
        """Open the row in the editor until it passes the checks, is kept as it is, or the person gives up."""
        row = self.rows[self.position]
        if row.content is None:
            self._say(translatable("An editor shows the personal data or secrets of the row: start with --unmasked."))
            return
        text = _indent_json(row.content)
        while (text := edit_text(text)).strip():
            try:
                edited = json.loads(text)
                problem = None if isinstance(edited, dict) else translate("a row is a JSON object")
            except ValueError as error:
                problem = str(error)
            if problem is None:
                (checked,) = check_edited([edited], self._unmasked)
                self._console.print(Group(*_failed_lines(checked)))
                failed = [reason for reason in checked.failed if reason["severity"] != "warn"]
                if not failed:
                    self._decide("edit", edited)
                    return
                if self._answers_yes(translatable("Keep the edited row although it fails these checks? [y/N] ")):
                    self._decide("keep", edited, checked.checks)
                    return
            else:
                self._say(translatable("The text is not a row: {problem}"), problem=problem)
            if not self._answers_yes(translatable("Edit again? [y/N] ")):
                return

    def _answers_yes(self, question: str) -> bool:
        return self._read_line(translate(question)).strip().lower() in ("y", "yes", "是")

    # Output ----------------------------------------------------------------------------------------

    def _say(self, message: str, **values: object) -> None:
        self._console.print(translate(message, **values))

    def _help(self) -> None:
        for command, meaning in COMMANDS.items():
            self._console.print(f"  {command}  {translate(meaning)}")

    def _pages(self, row: ReviewRow) -> list["_Lines"]:
        """Return the row in pages that fit the height of the terminal."""
        lines = self._console.render_lines(Group(*self._render(row)), pad=False)
        height = max(5, self._console.height - _RESERVED_LINES)
        return [_Lines(lines[start : start + height]) for start in range(0, len(lines), height)]

    def _render(self, row: ReviewRow) -> list[Text]:
        number = f"[{self.position + 1}/{len(self.rows)}] "
        parts = [Text(""), Text.assemble((number, "dim"), (row.place, "bold")), *_failed_lines(row)]
        if row.unread:
            parts.append(Text(translate("Unread keys: {keys}", keys=", ".join(row.unread)), "dim"))
        if decision := self.decisions.get(row.content_sha256):
            shown = translate("Decided: {decision} ({reason})", decision=decision.decision, reason=decision.reason)
            parts.append(Text(shown, "green"))
        for message in row.messages:
            parts += [Text(translate(_ROLES[message["role"]]), "bold cyan"), _marked(message["content"], row)]
        return [*parts, _marked(row.text, row)] if row.text else parts


class _Lines:
    """Lines that rich has rendered already."""

    def __init__(self, lines: Sequence[Sequence[Segment]]):
        self._lines = lines

    def __rich_console__(self, console, options):
        for line in self._lines:
            yield from line
            yield Segment.line()


def _failed_lines(row: ReviewRow) -> list[Text]:
    """Return a line for each check that the row fails."""
    lines = []
    for reason in row.failed:
        limit = "" if reason["limit"] is None else translate("limit {limit}", limit=reason["limit"])
        style = "yellow" if reason["severity"] == "warn" else "red"
        severity = translate(reason["severity"])
        seen = f"{reason['seen']} ({limit})" if limit else str(reason["seen"])
        lines.append(Text.assemble((f"{reason['check']} · {severity}", style), f": {seen}"))
    return lines or [Text(translate("The row passes all row checks."), "green")]


def _marked(text: str, row: ReviewRow) -> Text:
    """Return a text in which the excerpts of failed checks are highlighted, and control characters are visible."""
    pieces = split_at_faults(text, row.failed)
    return Text.assemble(*((_printable(piece), "reverse yellow" if is_fault else "") for piece, is_fault in pieces))


def _printable(text: str) -> str:
    """Return a text without the control sequences by which a row could rewrite the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else f"\\u{ord(character):04x}"
        for character in text.expandtabs(4)
    )


def _indent_json(content: str) -> str:
    with suppress(ValueError):
        return json.dumps(json.loads(content), ensure_ascii=False, indent=2)
    return content


def edit_text(text: str) -> str:
    """Return a text after a person has edited it in ``$VISUAL`` or ``$EDITOR``.

    Raises:
        UserError: there is no editor, or it failed.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "") or _default_editor()
    with tempfile.TemporaryDirectory(prefix="tuneline-") as folder:
        path = Path(folder, "row.json")
        path.write_text(text, encoding="utf-8", errors="replace")
        if code := run_in_terminal(*command, str(path)):
            raise UserError(f"The editor `{command[0]}` ended with exit code {code}; nothing was changed.")
        return path.read_text(encoding="utf-8", errors="replace")


def _default_editor() -> list[str]:
    for name in ("nano", "vim", "vi"):
        if shutil.which(name):
            return [name]
    raise UserError("There is no editor; set the environment variable EDITOR to one.")
