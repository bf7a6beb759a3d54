"""The suite: named checks as Great Expectations, run over the features.

Great Expectations knows nothing of severities or of our rows; what it gives back is, for each
check, the rows that failed it.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stages.params import Validate


@dataclass(frozen=True)
class Check:
    """One named check.

    Attributes:
        name: as it stands in quarantine and reports.
        column: the feature that it judges.
        limit: the largest value allowed; None if the feature must be absent.
        meaning: what a row that fails it has.
    """

    name: str
    column: str
    limit: float | None
    meaning: str


@dataclass(frozen=True)
class Failure:
    """One row that failed one check: the row's index, the check, and the value seen."""

    row: int
    check: Check
    seen: object


def suite(params: Validate) -> list[Check]:
    return [
        Check("parseable", "parse_error", None, "is not UTF-8 JSON"),
        Check("known_format", "format_error", None, "is in none of the accepted formats"),
        Check("roles_alternate", "role_fault", None, "has its roles in the wrong order"),
        Check("nothing_blank", "blank_texts", 0, "has an empty or blank text"),
        Check("clean_characters", "bad_characters", 0, "has replacement, control or surrogate characters"),
        Check("no_mojibake", "mojibake", 0, "has UTF-8 that was read as GBK"),
        Check("no_control_tokens", "control_tokens", 0, "spells a control token of the tokenizer"),
        Check("no_placeholders", "placeholders", 0, "has an unfilled placeholder"),
        Check("not_too_long", "characters", params.max_characters, "is too long"),
        Check("not_repetitive", "repetition", params.max_repetition, "repeats itself"),
        Check("unique", "duplicate_of", None, "is the same as an earlier row"),
    ]


def judge(features: pd.DataFrame, checks: list[Check], docs: Path | None = None) -> list[Failure]:
    """Run the suite.

    Args:
        features: one row a sample, its index in column ``row``.
        docs: where to build Great Expectations' Data Docs; not built if None.

    Returns:
        Every failure, in the order of checks and rows.

    Raises:
        RuntimeError: Great Expectations itself failed at a check, which it does in silence.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Named outright, because the defaults of a bare ephemeral context leave a folder behind in /tmp.
    stores = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=stores)
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("samples").add_dataframe_asset("features")
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    expectations = gx.ExpectationSuite(name="samples")
    for check in checks:
        expectations.add_expectation(_expectation(check))
    context.suites.add(expectations)
    definition = gx.ValidationDefinition(name="samples", data=batch, suite=expectations)
    context.validation_definitions.add(definition)
    if docs is not None:
        _add_docs_site(context, docs)
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name="samples",
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": features})
    if docs is not None:
        context.build_data_docs()
    (result,) = outcome.run_results.values()
    return _failures(result, checks, features)


def _expectation(check: Check):
    import great_expectations.expectations as gxe

    # A map expectation skips nulls, so that a feature which a row cannot have is no fault.
    meta = {"notes": f"{check.name}: a row fails that {check.meaning}"}
    if check.limit is None:
        return gxe.ExpectColumnValuesToBeNull(column=check.column, meta=meta)
    return gxe.ExpectColumnValuesToBeBetween(column=check.column, max_value=check.limit, meta=meta)


def _add_docs_site(context, docs: Path) -> None:
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        "show_how_to_buttons": False,
    }
    context.add_data_docs_site(site_name="validation", site_config=site)


def _failures(result, checks: list[Check], features: pd.DataFrame) -> list[Failure]:
    failures = []
    by_column = {check.column: check for check in checks}
    for each in result.results:
        check = by_column[each.expectation_config.kwargs["column"]]
        if each.exception_info.get("raised_exception"):
            raise RuntimeError(f"Great Expectations failed at {check.name}: {each.exception_info}")
        for entry in each.result.get("unexpected_index_list") or []:
            row = int(entry["row"])
            failures.append(Failure(row, check, _plain(features.at[row, check.column])))
    return failures


def _plain(seen: object) -> object:
    """A feature as it was before pandas and NumPy, which make floats of whole numbers beside missing ones."""
    seen = seen.item() if hasattr(seen, "item") else seen
    return int(seen) if isinstance(seen, float) and seen.is_integer() else seen
