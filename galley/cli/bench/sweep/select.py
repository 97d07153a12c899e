"""Which of a sweep's runs are drawn, and how they are told apart."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from galley.cli.bench.sweep.experiment import Record
from galley.errors import ConfigError

#: Longer operators first: "<=" is no "<".
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def number_or_text(text: Any) -> Any:
    """ "inf" and numbers in words as numbers."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def value_of(record: Record, name: str) -> Any:
    """Raises ConfigError, which names the fields that there are."""
    if name not in record:
        raise ConfigError(
            f"the results have no field {name!r}; they have {', '.join(sorted(record))}.",
            field=name,
        )
    return record[name]


def keep(records: Sequence[Record], filters: str) -> list[Record]:
    """Those for which all of `"a<1000,b==x"` hold. Raises ConfigError."""
    kept = list(records)
    for text in filter(None, filters.split(",")):
        sign = next((sign for sign in _COMPARE if sign in text), None)
        if sign is None:
            raise ConfigError(
                f"--filter-by takes FIELD<VALUE and the like; got {text!r}.", field="filter_by"
            )
        name, _, wanted = text.partition(sign)
        limit = number_or_text(wanted.strip().strip("'\""))
        try:
            kept = [
                r for r in kept if _COMPARE[sign](number_or_text(value_of(r, name.strip())), limit)
            ]
        except TypeError as e:
            raise ConfigError(f"--filter-by {text}: {e}.", field="filter_by") from e
    return kept


def rounded(records: Sequence[Record], bins: str) -> list[Record]:
    """With fields rounded down to multiples: `"request_throughput%0.5"`. Raises ConfigError."""
    found = [dict(record) for record in records]
    for text in filter(None, bins.split(",")):
        name, _, size = text.partition("%")
        step = number_or_text(size)
        if not isinstance(step, float) or step <= 0:
            raise ConfigError(f"--bin-by takes FIELD%SIZE; got {text!r}.", field="bin_by")
        for record in found:
            record[name] = float(value_of(record, name)) // step * step
    return found


def group(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Record]]:
    """Records by the values of some fields, `"a=1 b=2"` → records; one group without names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = " ".join(f"{name}={value_of(record, name)}" for name in names)
        groups.setdefault(key, []).append(record)
    return groups


def listed(text: str | None) -> list[str]:
    return [part for part in (text or "").split(",") if part]
