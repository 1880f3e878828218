"""Choose the rows of a data set by conditions on the values of their columns."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hmt_ds.data.errors import DataError, first_line

ROWS = 10_000  # values compared in one go

Scalar = str | int | float | bool


class Bounds(TypedDict):
    """Condition on a column of numbers: its value lies from `min` to `max`, both included; None for no bound."""

    min: float | None
    max: float | None


Condition = Scalar | Sequence[Scalar] | Bounds


def rows_where(documents: Dataset, where: Mapping[str, Condition], source: str) -> tuple[np.ndarray, list[str]]:
    """Choose the rows of a data set that meet all conditions; a row without a value in a column does not meet its
    condition.

    Args:
        documents: Rows that have the columns.
        where: Condition on each column, by the column's name: a value, a list of values (one of which the row must
            have), or bounds.
        source: Name of the source, for errors.

    Returns:
        Indices of the chosen rows, `[rows]` int64, and a line for each condition that leaves rows out.

    Raises:
        DataError: A column cannot be compared with the condition's values.
    """
    kept, lines = np.ones(len(documents), dtype=bool), list[str]()
    for column, condition in where.items():
        met = np.concatenate([np.zeros(0, dtype=bool), *_met(documents, column, condition, source)])
        if count := int((kept & ~met).sum()):
            lines.append(f"{count:,} whose {column} is not {describe(condition)}")
        kept &= met
    return np.flatnonzero(kept), lines


def describe(condition: Condition) -> str:
    """Return a condition on a column as words, such as "en or de" or "at least 10 and at most 20".

    Args:
        condition: A value, a list of values, or bounds.
    """
    if isinstance(condition, dict):
        words = {"min": "at least", "max": "at most"}
        bounds = ((words[name], condition[name]) for name in ("min", "max"))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    values = condition if isinstance(condition, list) else [condition]
    return " or ".join(map(str, values))


def _met(documents: Dataset, column: str, condition: Condition, source: str) -> list[np.ndarray]:
    """Return a mask (bool) of the rows that meet a condition on a column, 10,000 rows at a time.

    Raises:
        DataError: The column cannot be compared with the condition's values.
    """
    batches = documents.select_columns([column]).with_format("arrow").iter(batch_size=ROWS)
    try:
        return [np.asarray(pc.fill_null(_compare(batch[column], condition), False)) for batch in batches]
    except (pa.ArrowException, TypeError) as error:
        holds = f"column {column!r} of {source} holds {documents.data.schema.field(column).type}"
        raise DataError(
            f"where: {holds}, and cannot be compared with {condition!r} ({first_line(error)}): correct the value"
        ) from None


def _compare(values: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    if isinstance(condition, dict):
        least, most = condition["min"], condition["max"]
        met = pc.is_valid(values)
        met = met if least is None else pc.and_kleene(met, pc.greater_equal(values, least))
        return met if most is None else pc.and_kleene(met, pc.less_equal(values, most))
    wanted = condition if isinstance(condition, list) else [condition]
    return pc.is_in(values, value_set=pa.array(wanted).cast(values.type))
