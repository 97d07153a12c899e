"""Filtering, rounding and grouping of a sweep's runs for plots."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from galley.cli.bench.sweep.experiment import Record
from galley.errors import ConfigError

#: Longer operators first, so that "<=" is not read as "<".
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def number_or_text(text: Any) -> Any:
    """Convert numeric text, including "inf", to float; return other values unchanged."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def value_of(record: Record, name: str) -> Any:
    """Value of a field. Raises ConfigError listing the available fields."""
    if name not in record:
        raise ConfigError(
            f"the results have no field {name!r}; they have {', '.join(sorted(record))}.",
            field=name,
        )
    return record[name]


def keep(records: Sequence[Record], filters: str) -> list[Record]:
    """Records that match all conditions, e.g. `"a<1000,b==x"`. Raises ConfigError."""
    matches = list(records)
    for text in filter(None, filters.split(",")):
        sign = next((sign for sign in _COMPARE if sign in text), None)
        if sign is None:
            raise ConfigError(
                f"--filter-by takes FIELD<VALUE and the like; got {text!r}.", field="filter_by"
            )
        name, _, value = text.partition(sign)
        limit = number_or_text(value.strip().strip("'\""))
        try:
            matches = [
                r
                for r in matches
                if _COMPARE[sign](number_or_text(value_of(r, name.strip())), limit)
            ]
        except TypeError as e:
            raise ConfigError(f"--filter-by {text}: {e}.", field="filter_by") from e
    return matches


def rounded(records: Sequence[Record], bins: str) -> list[Record]:
    """Copies with fields rounded to multiples: `"request_throughput%0.5"`. Raises ConfigError."""
    result = [dict(record) for record in records]
    for text in filter(None, bins.split(",")):
        name, _, size = text.partition("%")
        step = number_or_text(size)
        if not isinstance(step, float) or step <= 0:
            raise ConfigError(f"--bin-by takes FIELD%SIZE; got {text!r}.", field="bin_by")
        for record in result:
            record[name] = float(value_of(record, name)) // step * step
    return result


def group(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Record]]:
    """Group records by the values of fields, `"a=1 b=2"` → records; one group if no names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = " ".join(f"{name}={value_of(record, name)}" for name in names)
        groups.setdefault(key, []).append(record)
    return groups


def split_names(text: str | None) -> list[str]:
    return [part for part in (text or "").split(",") if part]
