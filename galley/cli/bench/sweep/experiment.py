"""Files of a sweep: results of runs, summaries, and the runs still to do."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galley.cli.bench.sweep.params import NAME, Settings, name_of, safe
from galley.errors import ConfigError

Record = dict[str, Any]


@dataclass(frozen=True)
class ExperimentFlags:
    """Experiment"""

    output_dir: str = "results"
    """Folder of all results."""
    experiment_name: str | None = None
    """Name of the subfolder; default: the current time."""
    show_stdout: bool = False
    """Show the output of the commands."""
    dry_run: bool = False
    """Only print the commands."""
    resume: bool = False
    """Resume an experiment: skip runs that already have results."""


def folder_of(flags: ExperimentFlags) -> Path:
    """The experiment's folder. Raises ConfigError if --resume does not match its existence."""
    name = flags.experiment_name or time.strftime("%Y%m%d_%H%M%S")
    folder = Path(flags.output_dir) / name
    if flags.resume and not folder.exists():
        raise ConfigError(f"{folder}: there is nothing to resume.", field="resume")
    if not flags.resume and folder.exists():
        raise ConfigError(
            f"{folder} is there already; go on with --resume, or choose another --experiment-name.",
            field="experiment_name",
        )
    return folder


def place(folder: Path, *parts: tuple[str, Settings], more: Sequence[str] = ()) -> Path:
    """Folder of a combination: (("SERVE", {"a": 1}), …) → FOLDER/SERVE--a=1-…"""
    words = [word for kind, s in parts if s for word in (kind + "-", name_of(s))]
    return folder / safe("-".join([*words, *more]))


def run_file(base: Path, run: int) -> Path:
    return base / f"run={run}.json"


def with_settings(path: Path, run: int, *settings: Settings) -> Record:
    """Add the run's number and settings to a result file. Raises OSError, ValueError."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    record["run_number"] = run
    for some in settings:
        record.update(some)
    path.write_text(json.dumps(record, indent=4), encoding="utf-8")
    return record


def write_failure(path: Path, error: Exception, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"error_type": type(error).__name__, "error": str(error), **settings}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_summary(base: Path, records: Sequence[Record]) -> None:
    """Write all runs of a combination."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "summary.json").write_text(json.dumps(records, indent=4), encoding="utf-8")


def write_table(folder: Path, records: Sequence[Record]) -> None:
    """Write all runs of an experiment as numbered CSV rows, one column per field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = list(dict.fromkeys(name for record in records for name in record))
    with open(folder / "summary.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", *fields])
        for number, record in enumerate(records):
            rows.writerow([number, *(record.get(name, "") for name in fields)])


def read_records(folder: Path) -> list[Record]:
    """Read all runs below a folder. Raises ConfigError if there are none."""
    records: list[Record] = []
    try:
        for path in sorted(folder.rglob("summary.json")):
            records += json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: {e}.", field="EXPERIMENT_DIR") from e
    if not records:
        raise ConfigError(f"{folder}: there are no results of a sweep.", field="EXPERIMENT_DIR")
    return records


def without_name(settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if key != NAME}


def numbers(records: Iterable[Record], name: str) -> list[float]:
    """Numeric values of a field."""
    values = (record.get(name) for record in records)
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
