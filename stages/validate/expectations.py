"""Checks as Great Expectations, run over tables of features.

Great Expectations returns, for each check, the rows that fail and their values. Tables come in chunks, so that memory
stays bounded; the findings of all chunks are concatenated afterwards.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import numpy as np

from stages.validate.checks import Check

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read once, when the library is imported
_ROW = "row"


@dataclass
class Finding:
    """The rows that fail one check.

    Attributes:
        check: name of the check.
        rows: indices of the rows that fail, ascending.
        values: their values of the feature.
    """

    check: str
    rows: list[int] = field(default_factory=list)
    values: list = field(default_factory=list)

    @classmethod
    def concatenate(cls, parts: Sequence["Finding"]) -> "Finding":
        """Return the findings of one check over consecutive tables as one."""
        rows = list(chain.from_iterable(part.rows for part in parts))
        values = list(chain.from_iterable(part.values for part in parts))
        return cls(parts[0].check, rows, values)


def run_checks(features: Mapping[str, np.ndarray], rows: np.ndarray, checks: Sequence[Check]) -> list[Finding]:
    """Run checks over one table.

    Args:
        features: a column for each check, of shape (rows,).
        rows: indices of the rows, of shape (rows,).

    Returns:
        A finding for each check, in their order.

    Raises:
        RuntimeError: a check raised an exception, which Great Expectations records without raising it.
    """
    import pandas as pd

    columns = list(dict.fromkeys(check.column for check in checks))
    table = pd.DataFrame({_ROW: rows, **{column: features[column] for column in columns}})
    # COMPLETE lists all rows that fail; other formats list at most 20.
    result_format = {"result_format": "COMPLETE", "unexpected_index_column_names": [_ROW]}
    validation = _validation_definition(tuple(checks))
    outcome = validation.run(batch_parameters={"dataframe": table}, result_format=result_format)
    return [_to_finding(check, result) for check, result in zip(checks, outcome.results, strict=True)]


@lru_cache(maxsize=4)
def _validation_definition(checks: tuple[Check, ...]):
    """Return a validation definition of data frames with the columns of these checks."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Explicit stores, because an ephemeral context by default leaves a folder in /tmp.
    stores = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=stores)
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("samples").add_dataframe_asset("features")
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    expectations = [_build_expectation(check) for check in checks]
    suite = context.suites.add(gx.ExpectationSuite(name="samples", expectations=expectations))
    return context.validation_definitions.add(gx.ValidationDefinition(name="samples", data=batch, suite=suite))


def _build_expectation(check: Check):
    """Return the expectation of a check's column. Both kinds pass nulls: a row without the feature passes the check."""
    import great_expectations.expectations as gxe

    severity = "critical" if check.severity == "block" else "warning"
    if check.limit is None:
        return gxe.ExpectColumnValuesToBeNull(column=check.column, severity=severity)
    limits = {"min_value": check.minimum, "max_value": check.maximum}
    return gxe.ExpectColumnValuesToBeBetween(column=check.column, severity=severity, **limits)


def _to_finding(check: Check, result) -> Finding:
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"Great Expectations failed at check {check.name}: {result.exception_info}")
    if result.expectation_config.kwargs["column"] != check.column:
        raise RuntimeError(f"Great Expectations returned {result.expectation_config} for check {check.name}")
    failed = result.result.get("unexpected_index_list") or []
    return Finding(check.name, [int(row[_ROW]) for row in failed], [_to_plain(row[check.column]) for row in failed])


def _to_plain(value: object) -> object:
    """Return a value as a Python object; integers that pandas stored as floats beside NaN are integers again."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
