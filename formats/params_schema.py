"""Schema of params.yaml: one section per stage, every default, and an error for every unknown key.

The docstring under each field is its description in ``model_fields``; the reference of all keys is generated from it.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


DEMO, NO_PROBES = "data/demo", "data/no_probes"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# Base model and data -------------------------------------------------------------------------------


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
    general: Annotated[str, Field(min_length=1)] = "data/demo/general"
    """General conversations unrelated to the task: measure forgetting, and are mixed in by ``train.replay``."""


# Data checks ---------------------------------------------------------------------------------------

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
    """At most ``limit`` wordings of the probes in ``evaluate.probes`` stand in the training rows, exactly or nearly."""
    diverse: DatasetMinimum = DatasetMinimum(severity="warn", limit=0.1)
    """Share of distinct 4-grams among all 4-grams of 2,000 rows is at least ``limit``."""
    steady_lengths: DatasetMaximum = DatasetMaximum(severity="warn", limit=0.25)
    """Population stability index of row lengths against the previous accepted data, above chance, is at most ``limit``.

    From 0.1 on the lengths have drifted slightly, from 0.25 on considerably.
    """


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


# Adapters ------------------------------------------------------------------------------------------

CHAMPION = "champion"  # values of start_from, besides folders
CHAMPION_VERSION = re.compile(r"v\d+\.\d+\.\d+")


class Hyperparameters(Section):
    """Training hyperparameters that all methods share."""

    chosen_from: Count = 1
    """Number of parameter sets or seeds that these are the best of; promotion asks for more from the best of many.

    A sweep sets it. A change does not train the adapter again.
    """
    learning_rate: Positive
    """Peak learning rate."""
    epochs: Positive
    """Passes over the training rows; may be fractional."""
    batch_size: Count
    """Rows per device and step; packed rows if ``pack_tokens`` is set."""
    pack_tokens: Annotated[int, Field(ge=128, multiple_of=128, strict=True)] | None = None
    """Pack samples into rows of this many tokens, a multiple of 128; null pads samples instead."""
    gradient_accumulation: Count = 1
    """Steps per optimizer update."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule."""
    warmup: Annotated[float, Field(ge=0)] = 0.05
    """Learning-rate warmup: a share of all steps if below 1, otherwise a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which gradients are clipped."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    quantization: Literal[4, 8] | None = None
    """Bits per weight of the frozen base: 4 (NF4), 8 (LLM.int8()), or null for ``base.dtype``."""
    start_from: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Adapter whose weights training starts from: ``champion``, an earlier version such as ``v2.0.0``, or a folder.

    Null starts from new weights.
    """


LinearLayer = Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


class Lora(Hyperparameters):
    """LoRA: trainable low-rank matrices beside frozen linear layers (Hu et al., arXiv:2106.09685)."""

    method: Literal["lora"]
    """``lora``."""
    rank: Count
    """Rank of the low-rank matrices."""
    alpha: Positive
    """Scaling numerator: updates are multiplied by alpha / rank, or alpha / √rank with ``rslora``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability at the input of the low-rank matrices."""
    target_modules: Annotated[tuple[LinearLayer, ...], Field(min_length=1)] = ("query_key_value",)
    """Linear layers of every block that get low-rank matrices."""
    rslora: bool = False
    """Rank-stabilized scaling alpha / √rank (Kalajdzievski, arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed LoRA (Liu et al., arXiv:2402.09353)."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        names = ("rank", "alpha", "dropout", "rslora", "dora")
        return {name: getattr(self, name) for name in names} | {"target_modules": list(self.target_modules)}


class PTuningV2(Hyperparameters):
    """P-Tuning v2: a trainable key-value prefix in every layer (Liu et al., arXiv:2110.07602)."""

    method: Literal["ptuning_v2"]
    """``ptuning_v2``."""
    prefix_tokens: Count
    """Length of the prefix in tokens."""
    projection: bool = False
    """Compute the prefix with a two-layer MLP."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        return {"prefix_tokens": self.prefix_tokens, "projection": self.projection}


class Full(Hyperparameters):
    """Full fine-tuning: every weight of the base is trained, in float32."""

    method: Literal["full"]
    """``full``."""
    quantization: None = None
    """Not available: quantized weights are frozen."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        return {}


Adapter = Annotated[Lora | PTuningV2 | Full, Field(discriminator="method")]
# names of other files in reports/metrics and folders in models/weights
RESERVED_NAMES = {"base", "champion", "data", "general", "ingest", "tokens", "tokenizer"}
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Train(Section):
    """Training settings that all adapters share."""

    seed: Seed = 42
    """Seed of adapter initialization, data order, dropout and replay."""
    precision: Literal["base", "fp8"] = "base"
    """Data type of the frozen linear layers: ``base`` for ``base.dtype``, or ``fp8``.

    FP8 needs compute capability 8.9 or higher and a 16-bit ``base.dtype``.
    """
    devices: Count = 1
    """GPUs of this host; one process each. The effective batch size grows with them."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp`` replicates the model on every device; ``fsdp`` shards weights, gradients and optimizer state."""
    evaluations: Annotated[int, Field(ge=2)] = 10
    """Evaluations of the evaluation loss during training, evenly spaced."""
    logs: Count = 200
    """Minimum number of points of the training-loss curve."""
    keep: Literal["best", "last"] = "best"
    """Weights that become the adapter: those of the lowest evaluation loss, or the last."""
    patience: Count | None = None
    """Early stopping: evaluations without a lower evaluation loss before training ends; null disables it."""
    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt: ``all`` or the ``last`` one, except those with a loss flag of 0."""
    replay: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of general conversations among the training rows, against forgetting; from 0 to 0.9."""
    report_to: tuple[Literal["tensorboard", "mlflow", "swanlab", "wandb"], ...] = ()
    """Experiment trackers that get the losses, beside DVCLive; each is a package to install, and none is the default.

    Where they send their data is set by their own environment variables.
    """


# After training ------------------------------------------------------------------------------------


class Evaluate(Section):
    """Evaluation of the base and of every adapter."""

    probes: Annotated[str, Field(min_length=1)] = NO_PROBES
    """Your own questions: a file of [probes](file-formats.md#probes) or a folder of them; ``data/no_probes`` for none.

    The demo's probes count only if ``ingest.source`` is the demo's, too.
    """
    max_new_tokens: Count = 128
    """Longest generated answer in tokens."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers per probe, with seeds from 0 on, besides the greedy one."""
    batch_size: Count = 16
    """Prompts that are decoded together."""
    models: dict[AdapterName, Adapter | None]
    """Models to evaluate: ``base``, and every adapter by ``<<: *adapters``."""

    @field_validator("probes", mode="before")
    @classmethod
    def _refuse_null(cls, source: object) -> object:
        if source is None:  # DVC has no dependency that is null
            raise ValueError(f"null is not a path; write {NO_PROBES} to evaluate without probes")
        return source


class Compare(Section):
    """Comparison report."""

    answer_characters: Count = 60
    """Characters per answer in the terminal summary."""


class Guards(Section):
    """Largest regressions that still allow a promotion; see :mod:`stages.promote.promotion_rules`."""

    forgetting: Annotated[float, Field(ge=0)] = 0.1
    """Increase of the mean token loss on general conversations, in nats, over the best of base and champions."""
    general: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Smallest share of the ROUGE-L on general conversations that is kept, of the best of base and champions."""
    empty_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of empty answers, from 0 to 1."""
    refusals: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of answers that refuse where their reference does not, from 0 to 1."""
    repetition: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Mean share of an answer's 4-grams that occur earlier in it, from 0 to 1."""
    probes: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Decrease of the probe pass rate against the best of base and champions, from 0 to 1."""
    latency: Annotated[float, Field(ge=1)] = 2.0
    """Time per answer of equal length, as a multiple of the fastest of base and champions."""


class Promote(Section):
    """When a challenger replaces the champion: its gain is significant and no guard fails."""

    metric: Literal["loss", "rouge-l", "bleu-4", "chrf"] = "loss"
    """Metric per test row that must improve; ``loss`` is the mean token loss of a row."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """Smallest gain that is worth a promotion: the gain's lower confidence bound exceeds it, as a share of the mean."""
    seed_spread: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """Standard deviation between seeds of a model's true mean of ``metric``, as a share of it.

    The gain must exceed what differences of this size make by chance.
    """
    guards: Guards = Guards()
    """Largest regressions that still allow a promotion."""


class Monitor(Section):
    """Drift of new rows from the champion's training rows; see :mod:`stages.drift.drift_tests`."""

    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Family-wise significance level: share of comparisons of unchanged data that raise an alarm."""
    effect: Annotated[float, Field(ge=0)] = 0.2
    """Smallest shift that counts as drift, in standard deviations of the reference."""
    topics: Annotated[int, Field(ge=0)] = 4
    """Number of topics that are compared; 0 for none."""
    least_rows: Count = 20
    """Rows below which the verdict is ``unknown``."""
    most_rows: Count = 5000
    """Rows that are compared at most; a random sample if there are more."""


class Params(Section):
    """All sections of params.yaml."""

    base: Base
    """The pretrained model that adapters are trained on."""
    ingest: Ingest
    """Raw data."""
    validate_: Validate = Field(alias="validate")
    """Data checks and split."""
    encode: Encode
    """Token budgets."""
    question_fit: QuestionFit = QuestionFit()
    """Ranking of training answers by the help of their question."""
    adapters: dict[AdapterName, Adapter]
    """Adapters to train, by name."""
    train: Train
    """Training settings that all adapters share."""
    evaluate: Evaluate
    """Evaluation of the base and of every adapter."""
    compare: Compare
    """Comparison report."""
    promote: Promote = Promote()
    """Conditions of a promotion."""
    monitor: Monitor = Monitor()
    """Drift monitoring."""

    @property
    def for_general_data(self) -> "Params":
        """The parameters with which general conversations are read: encoding and columns are those of the task data."""
        ingest = self.ingest.model_copy(update={"encoding": "utf-8", "columns": Columns()})
        return self.model_copy(update={"ingest": ingest})

    @model_validator(mode="after")
    def _check_sections_agree(self):
        if reserved := sorted(RESERVED_NAMES & set(self.adapters)):
            raise ValueError(f"adapters: {reserved[0]!r} is a reserved name; rename the adapter")
        if self.train.precision == "fp8" and self.base.dtype == "float32":
            raise ValueError(
                "train.precision fp8 and base.dtype float32 exclude each other, because FP8 matrix products return "
                "16-bit results; set base.dtype to bfloat16"
            )
        for name, adapter in self.adapters.items():
            self._check_adapter(name, adapter)
        if set(self.evaluate.models) != {"base", *self.adapters}:
            raise ValueError("evaluate.models must be 'base:' and '<<: *adapters', as in the supplied params.yaml")
        return self

    @property
    def probes(self) -> Path | None:
        """File or folder of the probes; None if there are none, or only the demo's for data that are not the demo's."""
        source = self.evaluate.probes
        if os.path.realpath(source) == os.path.realpath(NO_PROBES):
            return None
        is_left_out = _is_of_demo(source) and not _is_of_demo(self.ingest.source)
        return None if is_left_out else Path(source)

    def _check_adapter(self, name: str, adapter: Adapter) -> None:
        longest = self.encode.max_prompt_tokens + self.encode.max_answer_tokens
        if adapter.pack_tokens is not None and adapter.pack_tokens < longest:
            raise ValueError(
                f"adapters.{name}.pack_tokens is {adapter.pack_tokens}, but must be at least {longest}, the longest "
                "possible sample (encode.max_prompt_tokens + encode.max_answer_tokens)"
            )
        if adapter.start_from and getattr(adapter, "projection", False):
            raise ValueError(
                f"adapters.{name}: start_from and projection exclude each other, because a saved prefix has no weights "
                "of the projection; set projection to false"
            )
        if self.train.precision == "fp8" and (adapter.quantization or adapter.method == "full"):
            other = "quantization" if adapter.quantization else "method full"
            raise ValueError(f"train.precision fp8 and adapters.{name}.{other} exclude each other")
        if self.train.strategy == "fsdp" and (adapter.quantization or self.train.precision == "fp8"):
            other = f"adapters.{name}.quantization" if adapter.quantization else "train.precision fp8"
            raise ValueError(f"train.strategy fsdp and {other} exclude each other")


def _is_of_demo(path: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(DEMO).resolve())


# Reading -------------------------------------------------------------------------------------------


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: the file is missing, unreadable or not YAML, or has an unknown key or an invalid value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run this from the project's folder.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_describe_error(error)}") from None


def _describe_error(error: ValidationError) -> str:
    # A misspelled key also makes the correct one missing; report the misspelled one.
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    location = list(first["loc"])
    if location[:1] == ["adapters"] and len(location) > 2:
        del location[2]  # the discriminator, which pydantic inserts
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        return f"{key} is not a known key; check its spelling."
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}: {reason}." if key else f"{reason}."


def override_adapter(params: Params, name: str, changes: dict) -> Params:
    """Return the parameters with changed settings of one adapter.

    Raises:
        UserError: the settings are invalid.
    """
    content = params.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for adapters in (content["adapters"], content["evaluate"]["models"]):
        adapters[name] = adapters[name] | changes
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        listed = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise UserError(f"{listed}: {_describe_error(error)}") from None


def resolve(params: Params) -> dict:
    """Return all parameters as JSON values, including defaults that params.yaml omits.

    Each adapter also has its ``attachment``, so that DVC retrains it after a change of that method's code.
    """
    resolved = params.model_dump(mode="json", by_alias=True)
    for name, adapter in params.adapters.items():
        resolved["adapters"][name]["attachment"] = adapter.attachment()
        del resolved["adapters"][name]["chosen_from"]  # of promotion; training does not depend on it
    del resolved["evaluate"]["models"]  # repeats the adapters
    resolved["evaluate"]["probes"] = params.probes and str(params.probes)
    return resolved
