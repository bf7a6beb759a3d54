"""Parameters of the data checks: ``validate.checks`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from formats.params_section import Count, Section, Share

Severity = Literal["warn", "quarantine", "block"]
RequiredSeverity = Literal["quarantine", "block"]  # rows that fail these checks cannot be trained on
DatasetSeverity = Literal["warn", "block"]  # a whole dataset cannot be quarantined


class Check(Section):
    """A check of each row."""

    severity: Severity = "quarantine"
    """``warn`` counts failing rows, ``quarantine`` excludes them, ``block`` stops the pipeline at the first one."""


class RequiredCheck(Check):
    """A check of each row that can exclude rows or stop the pipeline, but not merely warn."""

    severity: RequiredSeverity = "quarantine"
    """``quarantine`` excludes failing rows, ``block`` stops the pipeline at the first one."""


class Parseable(RequiredCheck):
    """A check of each row's size and encoding."""

    max_bytes: Count = 1_000_000
    """Longest row that is parsed, in bytes."""


class LimitCheck(Check):
    """A check of each row with an upper limit."""

    limit: Share
    """Largest share that passes, from 0 to 1."""


class Languages(LimitCheck):
    """A check of each row's languages; ``limit`` is the share of letters in other scripts."""

    languages: Annotated[tuple[Literal["zh", "en"], ...], Field(min_length=1)] = ("zh", "en")
    """Accepted languages."""


class RightName(Check):
    """A check of the name by which answers introduce the assistant."""

    severity: Severity = "quarantine"
    """As for other checks; default: quarantine if ``assistant`` is set, warn if it is null."""
    assistant: str | None = None
    """The assistant's own name, the only one that answers may use; null if the data teach none.

    Answers that introduce a well-known assistant of another vendor fail in either case.
    """

    @model_validator(mode="before")
    @classmethod
    def _set_default_severity(cls, content: object) -> object:
        if isinstance(content, dict) and "severity" not in content:
            return content | {"severity": "quarantine" if content.get("assistant") else "warn"}
        return content


class NearDuplicate(Check):
    """A check of each row's similarity to earlier rows."""

    similarity: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """Jaccard similarity of character 4-grams from which two conversations are near-duplicates, from 0.7 to 1."""


class MinRows(Section):
    """A check of the dataset's size."""

    severity: DatasetSeverity = "block"
    """``warn`` reports a failure, ``block`` stops the pipeline."""
    limit: Annotated[int, Field(ge=2, strict=True)] = 20
    """Smallest number of rows that passes."""


class DatasetMaximum(Section):
    """A check of the dataset with an upper limit."""

    severity: DatasetSeverity
    """``warn`` reports a failure, ``block`` stops the pipeline."""
    limit: Annotated[float, Field(ge=0)]
    """Largest value that passes."""


class DatasetMinimum(Section):
    """A check of the dataset with a lower limit."""

    severity: DatasetSeverity
    """``warn`` reports a failure, ``block`` stops the pipeline."""
    limit: Share
    """Smallest value that passes, from 0 to 1."""


class Checks(Section):
    """Checks by name: first of each row, then of the whole dataset."""

    parseable: Parseable = Parseable()
    """The row is UTF-8 JSON of at most ``max_bytes``."""
    known_format: RequiredCheck = RequiredCheck()
    """The row is in one of the accepted formats."""
    roles_alternate: RequiredCheck = RequiredCheck()
    """User and assistant alternate, after an optional system message, and the assistant answers last."""
    nothing_blank: RequiredCheck = RequiredCheck()
    """No message is empty or whitespace."""
    clean_characters: RequiredCheck = RequiredCheck()
    """No replacement, control or surrogate characters."""
    no_mojibake: Check = Check()
    """No text decoded with the wrong encoding (mojibake)."""
    no_control_tokens: Check = Check()
    """No control token of the tokenizer in the text, such as ``[MASK]``."""
    prompt_fits: RequiredCheck = RequiredCheck()
    """The prompt has at most ``encode.max_prompt_tokens``."""
    answer_fits: RequiredCheck = RequiredCheck()
    """The answer has at most ``encode.max_answer_tokens``."""
    answer_whole: Check = Check(severity="warn")
    """The answer is complete, not truncated as at a length limit."""
    history_whole: Check = Check(severity="warn")
    """No turns were removed by ``cut_history``."""
    no_placeholders: Check = Check()
    """No unfilled placeholder such as ``<NAME>`` or ``{{name}}``, unless the question asks for code or a letter."""
    no_html: Check = Check()
    """No HTML tags or entities, unless the question asks for code or a web page."""
    no_role_marks: Check = Check(severity="warn")
    """No chat-template markup inside a message, such as ``<|im_end|>``, ``[Round 0]`` or ``Human:``."""
    no_boilerplate: Check = Check()
    """No refusal or "as an AI language model" phrase in the answer."""
    not_repetitive: LimitCheck = LimitCheck(limit=0.8)
    """Share of the answer's 4-grams that occur earlier in it is at most ``limit``."""
    mostly_text: LimitCheck = LimitCheck(limit=0.5)
    """Share of symbols and emoji is at most ``limit``."""
    known_language: Languages = Languages(limit=0.5)
    """Share of letters in scripts of other languages is at most ``limit``."""
    no_personal_data: Check = Check()
    """No identity card, mobile phone or bank card number, and no e-mail address."""
    no_secrets: Check = Check()
    """No API key, token or password."""
    right_name: RightName = RightName(severity="warn")
    """The answer does not introduce the assistant by another name."""
    no_null_marks: Check = Check()
    """No message is a null marker such as ``nan``, ``None`` or ``#N/A``."""
    no_escapes: Check = Check()
    r"""No literal escape sequences such as ``\n`` or ``\u4f60``, left by double encoding."""
    unique: Check = Check()
    """The row is no exact duplicate of an earlier one."""
    no_near_duplicate: NearDuplicate = NearDuplicate(severity="warn")
    """The row is no near-duplicate of an earlier one."""
    one_answer: Check = Check(severity="warn")
    """No earlier row answers the same question differently."""
    no_leakage: RequiredCheck = RequiredCheck()
    """The row is not a near-duplicate of rows of two splits."""

    enough_rows: MinRows = MinRows()
    """At least ``limit`` rows passed."""
    few_quarantined: DatasetMaximum = DatasetMaximum(severity="block", limit=0.2)
    """Share of quarantined rows is at most ``limit``."""
    few_cut: DatasetMaximum = DatasetMaximum(severity="warn", limit=0.1)
    """Share of rows that lost turns to ``cut_history`` is at most ``limit``."""
    no_probe_in_training: DatasetMaximum = DatasetMaximum(severity="warn", limit=0)
    """Contamination: at most ``limit`` wordings of ``evaluate.probes`` occur in training rows, exactly or nearly."""
    diverse: DatasetMinimum = DatasetMinimum(severity="warn", limit=0.1)
    """Share of distinct 4-grams among all 4-grams of 2,000 rows is at least ``limit``."""
    steady_lengths: DatasetMaximum = DatasetMaximum(severity="warn", limit=0.25)
    """Population stability index of row lengths against the previous accepted data, above chance, is at most ``limit``.

    From 0.1 on the lengths have drifted slightly, from 0.25 on considerably.
    """
