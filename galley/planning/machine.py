"""`Machine`: the rates at which a machine runs a step, measured or from the table of devices."""

from __future__ import annotations

import math
import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import msgspec

from galley.errors import ConfigError

#: (rows that each weight is multiplied with, operations per second), rows ascending.
Curve = Sequence[tuple[float, float]]
#: The machine that a plan is made for if none is named: the one that runs it.
THIS = "this"


class Machine(msgspec.Struct, frozen=True):
    """A machine of one or more equal devices, connected by links.

    Attributes:
        name: as in --machine.
        title: what it is.
        memory: bytes of one device that an engine may have.
        read: bytes per second that kernels read from the memory of one device.
        peak: operations per second that kernels reach on one device, by number format; a
            multiply-add is two.
        rates: measured speeds of products and attention, by `Work.matrix` and `Work.weights`: of
            whole operations, with reading the weights.
        op_seconds: of an operation besides its work, where its speed was not measured.
        element_seconds: of an activation that is read or written.
        sample_seconds: of a logit that is sampled from.
        step_seconds, row_seconds: of the host: for a step, and for each of its sequences.
        request_seconds: of the front end for a request, before its first step: one after another.
        request_delay: more seconds between the client and the engine, for all requests alike.
        devices: how many there are.
        link: bytes per second from one device to another, link_seconds: latency of an exchange.
        watts: of one device under load; 0 = not known.
        sources: where the figures are from.
    """

    name: str
    title: str
    memory: int
    read: float
    peak: Mapping[str, float]
    rates: Mapping[str, Curve] = {}
    op_seconds: float = 0.0
    element_seconds: float = 0.0
    sample_seconds: float = 0.0
    step_seconds: float = 0.0
    row_seconds: float = 0.0
    request_seconds: float = 0.0
    request_delay: float = 0.0
    devices: int = 1
    link: float = 0.0
    link_seconds: float = 0.0
    watts: float = 0.0
    sources: Sequence[str] = ()

    @property
    def is_measured(self) -> bool:
        return bool(self.rates)


def interpolate(curve: Curve, rows: float) -> float:
    """The speed at a number of rows: a straight line between logarithms, level beyond the ends."""
    at = bisect_left(curve, rows, key=lambda point: point[0])
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (left, low), (right, high) = curve[at - 1 : at + 1]
    share = math.log(rows / left) / math.log(right / left)
    return low * (high / low) ** share


def device(name: str) -> Machine:
    """A machine of the table: `h100`, or `8xh100`.

    Raises ConfigError for a name that is not in the table.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([\w.-]+)", name.lower())
    known = _devices()
    if match is None or match[2] not in known or not 1 <= int(match[1] or 1) <= 64:
        raise ConfigError(
            f"--machine {name}: no such machine. Known: {THIS}, {', '.join(known)}; several of a "
            "kind: 8xh100 (up to 64).",
            field="machine",
        )
    return msgspec.structs.replace(known[match[2]], name=name.lower(), devices=int(match[1] or 1))


def device_names() -> list[str]:
    return list(_devices())


@cache
def _devices() -> dict[str, Machine]:
    text = (files("galley.planning") / "devices.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    common = tables.pop("common")
    found = {}
    for name, row in tables.items():
        row = {**common, **row}
        read, arithmetic = row.pop("read_share"), row.pop("peak_share")
        row["memory"] = int(row.pop("memory_gb") * 1e9)
        row["read"] = row.pop("read_gb") * 1e9 * read
        row["peak"] = {k: v * 1e12 * arithmetic for k, v in row.pop("peak_t").items()}
        row["link"] = row.pop("link_gb") * 1e9
        found[name] = msgspec.convert({"name": name, **row}, Machine)
    return found
