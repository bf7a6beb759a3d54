"""Schema of params.yaml: one section per stage, every default, and an error for every unknown key."""

import difflib
import os
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from formats.check_params import Checks, RequiredCheck
from formats.data_params import Base, Columns, Encode, Ingest, QuestionFit, Validate
from formats.params_section import Section
from formats.training_params import Adapter, AdapterName, Train
from formats.verdict_params import NO_PROBES, Compare, Evaluate, Monitor, Promote
from models.errors import UserError

DEMO = "data/demo"
# names of other files in reports/metrics and folders in models/weights
RESERVED_NAMES = {"base", "champion", "data", "general", "ingest", "tokens", "tokenizer"}


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
        similar = difflib.get_close_matches(str(location[-1]), _known_keys(), n=1)
        return f"{key} is not a known key; " + (f"did you mean {similar[0]}?" if similar else "check its spelling.")
    if first["type"] == "union_tag_invalid":
        name, given = first["ctx"]["discriminator"].strip("'"), first["ctx"]["tag"]
        return f"{key}.{name}: {given!r} is not one of {first['ctx']['expected_tags']}."
    reason = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], str | int | float) and first["type"] != "value_error":  # its message is complete
        reason += f", not {first['input']!r}"
    return f"{key}: {reason}." if key else f"{reason}."


def _known_keys() -> list[str]:
    """Return the keys of all sections."""
    sections = [Params.model_json_schema(), *Params.model_json_schema()["$defs"].values()]
    return sorted({key for section in sections for key in section.get("properties", {})})


def required_checks() -> set[str]:
    """Return the names of the checks that no decision of a review overrides."""
    return {name for name, field in Checks.model_fields.items() if issubclass(field.annotation, RequiredCheck)}


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
