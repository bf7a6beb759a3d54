"""Parameters of base model and data: sections base, ingest, validate, encode and question_fit of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from formats.check_params import Checks
from formats.params_section import Count, Positive, Section, Seed


class Tiny(Section):
    """Size and training of the tiny base model, used if ``base.model`` is ``tiny``."""

    vocab_size: Count = 6000
    """Number of tokenizer pieces."""
    hidden_size: Count = 256
    """Width of the hidden states; a multiple of 4 × ``heads``."""
    layers: Count = 4
    """Number of transformer blocks."""
    heads: Count = 4
    """Attention heads per block."""
    steps: Count = 700
    """Optimizer steps of pretraining."""
    batch_size: Count = 16
    """Rows per step of pretraining."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of pretraining."""
    seed: Seed = 42
    """Seed of initialization and data order in pretraining."""

    @model_validator(mode="after")
    def _check_head_size(self):
        if self.hidden_size % (4 * self.heads):
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of 4 × heads ({self.heads})")
        return self


class Base(Section):
    """The pretrained model that adapters are trained on."""

    model: str
    """``tiny`` (a 5.6-million-parameter ChatGLM pretrained by stage base), a Hugging Face Hub id, or a folder."""
    revision: str | None = None
    """Commit of the Hub repository; null for its current main branch. For Hub ids only."""
    family: Literal["auto", "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "chat-template", "chat-template-thinking"] = (
        "auto"
    )
    """Family of the model, by which conversations become tokens; ``auto`` recognizes it from config.json.

    With ``chat-template-thinking`` a thinking model such as Qwen3 thinks before its answers.
    """
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of the base's weights on the device. Full fine-tuning always uses float32."""
    tiny: Tiny = Tiny()
    """Size and training of the tiny base model."""


ColumnName = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Columns of the task data in a layout that is not recognized by its keys.

    Names with a dot are also paths (``data.question``). Rows without these columns are recognized by their keys.
    """

    question: ColumnName | None = None
    """Column of the question; ``answer`` is needed too."""
    answer: ColumnName | None = None
    """Column of the answer."""
    history: ColumnName | None = None
    """Column of the earlier turns: a list of ``[question, answer]`` pairs, or of messages."""
    system: ColumnName | None = None
    """Column of the system text."""
    messages: ColumnName | None = None
    """Column of a list of messages, instead of ``question`` and ``answer``."""
    text: ColumnName | None = None
    """Column of documents for continued pretraining, instead of ``question`` and ``answer``."""

    @model_validator(mode="after")
    def _check_parts(self):
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer belong together; name both columns")
        if sum(part is not None for part in (self.question, self.messages, self.text)) > 1:
            raise ValueError("name the columns question and answer, or messages, or text, but not several of them")
        if not (self.question or self.messages or self.text) and (self.history or self.system):
            raise ValueError("name the columns question and answer, or messages, beside history and system")
        if self.history and not self.question:
            raise ValueError("history belongs to question and answer; name these columns")
        if self.system and self.text:
            raise ValueError("a document has no system text; remove system or text")
        return self

    @property
    def by_part(self) -> dict[str, str]:
        """The names of the columns that are set, by part."""
        return self.model_dump(exclude_none=True)


class Ingest(Section):
    """Raw data: the task's conversations and general ones."""

    source: Annotated[str, Field(min_length=1)]
    """Task data: a JSON Lines, JSON, CSV, TSV, Parquet or ``.xlsx`` file, plain or packed, or a folder of them."""
    encoding: Literal["utf-8", "gb18030", "gbk", "big5", "utf-16", "utf-32"] = "utf-8"
    """Encoding of those files of ``source`` that are not UTF-8."""
    columns: Columns = Columns()
    """Columns of ``source`` in a layout that is not recognized by its keys."""
    general: Annotated[str, Field(min_length=1)]
    """General conversations unrelated to the task: measure forgetting, and are mixed in by ``train.replay``."""


class Validate(Section):
    """Data checks and the split into training, evaluation and test rows."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of accepted rows by which checkpoints, early stopping and sweeps are chosen, between 0 and 1."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of accepted rows that choose nothing, by which comparison and promotion decide, between 0 and 1."""
    cut_history: bool = False
    """Remove the oldest turns of a prompt over the token budget, answers included, instead of quarantining the row."""
    thinking: Literal["learn", "strip"] = "learn"
    """``<think>…</think>`` at the beginning of an answer: ``learn`` keeps it, ``strip`` removes it before checks."""
    checks: Checks = Checks()
    """Severity and limits of each check."""

    @model_validator(mode="after")
    def _check_shares(self):
        if self.eval_share + self.test_share >= 1:
            raise ValueError(
                f"eval_share ({self.eval_share}) and test_share ({self.test_share}) leave no rows for training; their "
                "sum must be below 1"
            )
        return self


class Encode(Section):
    """Token budgets of prompts and answers; stage validate checks them."""

    max_prompt_tokens: Count
    """Longest prompt in tokens, history included."""
    max_answer_tokens: Count
    """Longest answer in tokens."""


class QuestionFit(Section):
    """Ranking of training answers by how little their question helps the base to predict them."""

    answers: Annotated[int, Field(ge=0, strict=True)] = 2000
    """Answers that are ranked at most, a random sample of them, at up to three forward passes each; 0 for none."""
    shown: Count = 50
    """Rows in the report and in the review, the worst ones."""
    batch_size: Count = 16
    """Rows per forward pass."""
