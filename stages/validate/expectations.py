"""Checks as Great Expectations, run over tables of features.

Great Expectations knows nothing of our rows or of what befalls them; what it gives back is, for
each check, the rows that failed it and the values seen. Tables come in pieces, so that memory stays
bounded; their results are added up before they are shown (see :mod:`stages.validate.data_docs`).
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
    """The rows of one table that failed one check.

    Attributes:
        check: its name.
        rows: their numbers.
        seen: the value of each.
        judged: how many rows have the feature at all.
    """

    check: str
    rows: list[int] = field(default_factory=list)
    seen: list = field(default_factory=list)
    judged: int = 0

    @classmethod
    def joined(cls, parts: Sequence["Finding"]) -> "Finding":
        """One finding of several of the same check, over tables that follow one another."""
        rows = list(chain.from_iterable(part.rows for part in parts))
        seen = list(chain.from_iterable(part.seen for part in parts))
        return cls(parts[0].check, rows, seen, sum(part.judged for part in parts))


def judge(features: Mapping[str, np.ndarray], numbers: np.ndarray, checks: Sequence[Check]) -> list[Finding]:
    """Run the checks over one table.

    Args:
        features: a column for each check, of shape (rows,).
        numbers: the rows' own numbers, of shape (rows,).

    Returns:
        A finding for each check, in their order.

    Raises:
        RuntimeError: Great Expectations itself failed at a check, which it does in silence.
    """
    import pandas as pd

    columns = list(dict.fromkeys(check.column for check in checks))
    table = pd.DataFrame({_ROW: numbers, **{column: features[column] for column in columns}})
    # COMPLETE, because a check's rows are taken from its index list and not from its success.
    format_ = {"result_format": "COMPLETE", "unexpected_index_column_names": [_ROW]}
    outcome = _definition(tuple(checks)).run(batch_parameters={"dataframe": table}, result_format=format_)
    return [_finding(check, each, table) for check, each in zip(checks, outcome.results, strict=True)]


@lru_cache(maxsize=4)
def _definition(checks: tuple[Check, ...]):
    """A validation definition over data frames with the columns of these checks."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Named outright, because the defaults of a bare ephemeral context leave a folder behind in /tmp.
    stores = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=stores)
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("samples").add_dataframe_asset("features")
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    suite = context.suites.add(gx.ExpectationSuite(name="samples", expectations=[expectation_of(c) for c in checks]))
    return context.validation_definitions.add(gx.ValidationDefinition(name="samples", data=batch, suite=suite))


def expectation_of(check: Check):
    """The check as an expectation of its column."""
    import great_expectations.expectations as gxe

    told = {
        "column": check.column,
        "severity": "critical" if check.severity == "block" else "warning",
        "description": check.sentence,
    }
    # Both skip nulls, so that a feature which a row cannot have is no fault.
    if check.limit is None:
        return _no_fault()(**told)
    return gxe.ExpectColumnValuesToBeBetween(min_value=check.minimum, max_value=check.maximum, **told)


@lru_cache(maxsize=1)
def _no_fault() -> type:
    """An expectation of columns that hold a value where a row has a fault: shown as what it counts, not as «% null»."""
    import great_expectations.expectations as gxe
    from great_expectations.render import LegacyDiagnosticRendererType
    from great_expectations.render.renderer.renderer import renderer

    class ExpectColumnToShowNoFault(gxe.ExpectColumnValuesToBeNull):
        @classmethod
        @renderer(renderer_type=LegacyDiagnosticRendererType.OBSERVED_VALUE)
        def _diagnostic_observed_value_renderer(cls, configuration=None, result=None, runtime_configuration=None, **_):
            return result.result["observed_value"]

    return ExpectColumnToShowNoFault


def _finding(check: Check, result, table) -> Finding:
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"Great Expectations failed at {check.name}: {result.exception_info}")
    if result.expectation_config.kwargs["column"] != check.column:
        raise RuntimeError(f"Great Expectations gave {result.expectation_config} for {check.name}")
    hit = result.result.get("unexpected_index_list") or []
    judged = len(table) if check.limit is None else int(table[check.column].notna().sum())
    return Finding(check.name, [int(e[_ROW]) for e in hit], [_plain(e[check.column]) for e in hit], judged)


def _plain(seen: object) -> object:
    """A value as it was before NumPy, which makes floats of whole numbers beside missing ones."""
    seen = seen.item() if hasattr(seen, "item") else seen
    return int(seen) if isinstance(seen, float) and seen.is_integer() else seen
