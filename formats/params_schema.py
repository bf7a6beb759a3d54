"""The schema of params.yaml: one section for each stage, all defaults, and errors for unknown keys."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tiny(Section):
    """The embedded base model: its size and how it is trained."""

    @model_validator(mode="after")
    def _heads_share_the_width(self):
        if self.hidden_size % (4 * self.heads):
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of 4 × heads ({self.heads})")
        return self

    vocab_size: Count = 6000
    hidden_size: Count = 256
    layers: Count = 4
    heads: Count = 4
    steps: Count = 700
    batch_size: Count = 16
    learning_rate: Positive = 2e-3
    seed: Seed = 42


class Base(Section):
    """``model``: ``tiny``, a hub id, or a folder; ``revision`` pins a hub id to a commit."""

    model: str
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tiny: Tiny = Tiny()


class Ingest(Section):
    """``source``: a ``.jsonl`` or ``.json`` file, or a folder of them; ``general``: another, of conversations that
    have nothing to do with the task, to see what an adapter forgets and to replay against it."""

    source: Annotated[str, Field(min_length=1)]
    general: Annotated[str, Field(min_length=1)] = "data/demo/general"


Severity = Literal["warn", "quarantine", "block"]
Binding = Literal["quarantine", "block"]  # a row that fails such a check could not be trained on
OfAll = Literal["warn", "block"]


class Check(Section):
    """What befalls a row that fails a check: it is counted, set aside, or stops everything."""

    severity: Severity = "quarantine"


class BindingCheck(Check):
    severity: Binding = "quarantine"


class Parseable(BindingCheck):
    """``max_bytes``: a longer row is set aside unread."""

    max_bytes: Count = 1_000_000


class AtMost(Check):
    """``limit``: the largest value that passes."""

    limit: Share


class Languages(AtMost):
    """``limit``: the largest share of letters in scripts of other languages than ``languages``."""

    languages: Annotated[tuple[Literal["zh", "en"], ...], Field(min_length=1)] = ("zh", "en")


class RightName(Check):
    """``assistant``: the name that answers may give themselves; None where the data teach none.

    Answers that speak as a well-known assistant of others are found in any case. Unless a ``severity`` is set, they are
    counted where the data teach no name, and set aside where they do.
    """

    assistant: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _counts_without_a_name(cls, content: object) -> object:
        if isinstance(content, dict) and "severity" not in content:
            return content | {"severity": "quarantine" if content.get("assistant") else "warn"}
        return content


class NearDuplicate(Check):
    """``similarity``: Jaccard similarity of character 4-grams from which two conversations are near-duplicates."""

    similarity: Annotated[float, Field(ge=0.7, le=1)] = 0.8


class EnoughRows(Section):
    severity: OfAll = "block"
    limit: Annotated[int, Field(ge=2, strict=True)] = 20


class DataAtMost(Section):
    severity: OfAll
    limit: Annotated[float, Field(ge=0)]


class DataAtLeast(Section):
    severity: OfAll
    limit: Share


class Checks(Section):
    """Every check by name: what a row must be, then what the data as a whole must be."""

    parseable: Parseable = Parseable()
    known_format: BindingCheck = BindingCheck()
    roles_alternate: BindingCheck = BindingCheck()
    nothing_blank: BindingCheck = BindingCheck()
    clean_characters: BindingCheck = BindingCheck()
    no_mojibake: Check = Check()
    no_control_tokens: Check = Check()
    prompt_fits: BindingCheck = BindingCheck()
    answer_fits: BindingCheck = BindingCheck()
    answer_whole: Check = Check(severity="warn")
    history_whole: Check = Check(severity="warn")
    no_placeholders: Check = Check()
    no_html: Check = Check()
    no_role_marks: Check = Check(severity="warn")
    no_boilerplate: Check = Check()
    not_repetitive: AtMost = AtMost(limit=0.8)
    mostly_text: AtMost = AtMost(limit=0.5)
    known_language: Languages = Languages(limit=0.5)
    no_personal_data: Check = Check()
    no_secrets: Check = Check()
    right_name: RightName = RightName(severity="warn")
    no_null_marks: Check = Check()
    no_escapes: Check = Check()
    unique: Check = Check()
    no_near_duplicate: NearDuplicate = NearDuplicate(severity="warn")
    one_answer: Check = Check(severity="warn")
    no_leakage: BindingCheck = BindingCheck()

    enough_rows: EnoughRows = EnoughRows()
    few_quarantined: DataAtMost = DataAtMost(severity="block", limit=0.2)
    few_cut: DataAtMost = DataAtMost(severity="warn", limit=0.1)
    diverse: DataAtLeast = DataAtLeast(severity="warn", limit=0.1)
    steady_lengths: DataAtMost = DataAtMost(severity="warn", limit=0.25)


class Validate(Section):
    """``cut_history``: whether a prompt over the token budget loses its oldest turns instead of being set aside."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    cut_history: bool = False
    checks: Checks = Checks()


class Encode(Section):
    """Token budgets, which ``validate`` holds every row to."""

    max_prompt_tokens: Count
    max_answer_tokens: Count


class Fit(Section):
    """How an adapter is trained, whatever its method.

    ``pack_tokens``: put samples end to end into rows of so many tokens, which ``batch_size`` then counts.
    """

    learning_rate: Positive
    epochs: Positive
    batch_size: Count
    pack_tokens: Annotated[int, Field(ge=128, multiple_of=128, strict=True)] | None = None
    gradient_accumulation: Count = 1
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup: Annotated[float, Field(ge=0)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = False
    quantization: Literal[4, 8] | None = None


LinearLayer = Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


class Lora(Fit):
    method: Literal["lora"]
    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[LinearLayer, ...], Field(min_length=1)] = ("query_key_value",)
    rslora: bool = False
    dora: bool = False

    def attachment(self) -> dict:
        names = ("rank", "alpha", "dropout", "rslora", "dora")
        return {name: getattr(self, name) for name in names} | {"target_modules": list(self.target_modules)}


class PTuningV2(Fit):
    method: Literal["ptuning_v2"]
    prefix_tokens: Count
    projection: bool = False

    def attachment(self) -> dict:
        return {"prefix_tokens": self.prefix_tokens, "projection": self.projection}


class Full(Fit):
    """Every weight of the base, held in float32."""

    method: Literal["full"]
    quantization: None = None

    def attachment(self) -> dict:
        return {}


Adapter = Annotated[Lora | PTuningV2 | Full, Field(discriminator="method")]
# reports/metrics or models/weights has something of each of these names
RESERVED_NAMES = {"base", "champion", "data", "general", "ingest", "tokens", "tokenizer"}
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Train(Section):
    """What all adapters share.

    ``precision``: fp8 for the frozen layers, where the GPU has it, or as the base is. ``devices``: processes of this
    host, one a GPU; ``strategy``: each holds all weights (ddp) or a part of them (fsdp). ``keep``: the weights of
    the lowest evaluation loss, or the last. ``patience``: evaluations without a lower loss after which a training
    ends. ``replay``: share of general samples among those trained on.
    """

    seed: Seed = 42
    precision: Literal["base", "fp8"] = "base"
    devices: Count = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    evaluations: Annotated[int, Field(ge=2)] = 10
    logs: Count = 200
    keep: Literal["best", "last"] = "best"
    patience: Count | None = None
    replay: Annotated[float, Field(ge=0, le=0.9)] = 0.0


class Evaluate(Section):
    """``samples``: answers that are sampled to each probe, with seeds from 0 on. ``models`` is every adapter and the
    base; params.yaml merges it from ``adapters``."""

    max_new_tokens: Count = 128
    samples: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 16
    models: dict[AdapterName, Adapter | None]


class Compare(Section):
    """``answer_characters``: how much of each answer the short form for the terminal shows."""

    answer_characters: Count = 60


class Guarded(Section):
    """What must not get worse by more; see :class:`stages.promote.promotion_rules.Guards`."""

    forgetting: Annotated[float, Field(ge=0)] = 0.1
    empty_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    repetition: Annotated[float, Field(ge=0, le=1)] = 0.2
    probes: Annotated[float, Field(ge=0, le=1)] = 0.05
    latency: Annotated[float, Field(ge=1)] = 2.0


class Promote(Section):
    """When a challenger becomes the champion: a gain beyond ``margin`` of the champion's mean, and no guard broken."""

    metric: Literal["loss", "rouge-l", "bleu-4", "chrf"] = "loss"
    margin: Annotated[float, Field(ge=0)] = 0.05
    guards: Guarded = Guarded()


class Monitor(Section):
    """When new rows are another kind of rows; see :mod:`stages.drift.drift_tests`."""

    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    effect: Annotated[float, Field(ge=0)] = 0.2
    topics: Annotated[int, Field(ge=0)] = 4
    least_rows: Count = 20
    most_rows: Count = 5000


class Params(Section):
    base: Base
    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    encode: Encode
    adapters: dict[AdapterName, Adapter]
    train: Train
    evaluate: Evaluate
    compare: Compare
    promote: Promote = Promote()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _sections_agree(self):
        if taken := sorted(RESERVED_NAMES & set(self.adapters)):
            raise ValueError(f"adapters: the name {taken[0]!r} is taken; call the adapter something else")
        longest = self.encode.max_prompt_tokens + self.encode.max_answer_tokens
        if self.train.precision == "fp8" and self.base.dtype == "float32":
            raise ValueError(
                "train.precision fp8 and base.dtype float32 exclude each other: products in 8 bits give 16-bit "
                "results; set base.dtype to bfloat16"
            )
        for name, adapter in self.adapters.items():
            if adapter.pack_tokens is not None and adapter.pack_tokens < longest:
                raise ValueError(
                    f"adapters.{name}.pack_tokens ({adapter.pack_tokens}) must hold the longest sample, which may have "
                    f"{longest} tokens (encode.max_prompt_tokens + encode.max_answer_tokens)"
                )
            if self.train.precision == "fp8" and (adapter.quantization or adapter.method == "full"):
                other = "quantization" if adapter.quantization else "method full"
                raise ValueError(f"train.precision fp8 and adapters.{name}.{other} exclude each other")
            if self.train.strategy == "fsdp" and (adapter.quantization or self.train.precision == "fp8"):
                other = f"adapters.{name}.quantization" if adapter.quantization else "train.precision fp8"
                raise ValueError(f"train.strategy fsdp and {other} exclude each other")
        if set(self.evaluate.models) != {"base", *self.adapters}:
            raise ValueError(
                "evaluate.models must be 'base' and '<<: *adapters', as in the params.yaml that came along"
            )
        return self


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: it is missing, is no YAML, or has a key or value that no stage knows.
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
        raise UserError(f"{path}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    # A misspelled key also makes its right spelling missing: the misspelling is what to tell.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    loc = list(first["loc"])
    if loc[:1] == ["adapters"] and len(loc) > 2:
        del loc[2]  # the method, by which pydantic chose among the kinds of adapters
    where = ".".join(map(str, loc))
    if first["type"] == "extra_forbidden":
        return f"{where} is not a known key; check its spelling."
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}." if where else f"{reason}."


def with_adapter(knobs: Params, name: str, changes: dict) -> Params:
    """The parameters with other settings of one adapter.

    Raises:
        UserError: no adapter would take them.
    """
    content = knobs.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for adapters in (content["adapters"], content["evaluate"]["models"]):
        adapters[name] = adapters[name] | changes
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(
            f"{', '.join(f'{key}={value}' for key, value in changes.items())}: {_sentence(error)}"
        ) from None


def resolve(content: Params) -> dict:
    """All parameters as JSON values, those that params.yaml leaves out too.

    An adapter's ``attachment``, with which it is attached to the base, is derived by code of this module; it stands
    beside the settings so that a change of that code counts as well.
    """
    resolved = content.model_dump(mode="json", by_alias=True)
    for name, adapter in content.adapters.items():
        resolved["adapters"][name]["attachment"] = adapter.attachment()
    del resolved["evaluate"]["models"]  # the adapters once more
    return resolved
