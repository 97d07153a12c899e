"""docs/architecture.md against the tree and the import contract."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()


def layers_of_contract() -> list[set[str]]:
    """The layers of .importlinter, top first."""
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    rows = contract["importlinter:contract:layers"]["layers"].split("\n")
    return [set(re.split(r"\s*:\s*", row)) for row in rows if row]


def layers_of_page() -> list[set[str]]:
    """The layers that the page lists, top first."""
    found = re.search(r"Imports run downward only:\n`([^`]+)`", PAGE)
    assert found
    return [set(re.split(r",\s*", layer.strip())) for layer in found[1].split("→")]


def test_the_page_lists_the_layers_of_the_import_contract() -> None:
    assert layers_of_page() == layers_of_contract()


def test_every_package_is_in_the_import_contract() -> None:
    entries = [p for p in (ROOT / "galley").iterdir() if p.suffix == ".py" or p.is_dir()]
    packages = {p.stem for p in entries if not p.name.startswith("_")}
    assert packages == set().union(*layers_of_contract())


def test_the_files_that_the_page_names_exist() -> None:
    named = re.findall(r"`((?:galley|csrc|docs)/[\w/]+\.(?:py|cpp|h|md))`", PAGE)
    assert len(named) > 20
    for file in named:
        assert (ROOT / file).is_file(), file


def test_the_page_counts_the_files_on_the_path_of_a_request() -> None:
    section = PAGE.partition("## The path of a request")[2].partition("\n## ")[0]
    files = re.findall(r"^\| `(\S+)` \|", section, re.M)
    count = re.search(r"(\d+) files", section)
    assert count
    assert len(files) == len(set(files)) == int(count[1])


def test_the_tables_of_open_sets_exist() -> None:
    named = re.findall(r"`([A-Z_]+)` in `(galley/[\w/]+\.py)`", PAGE)
    assert len(named) > 10
    for table, file in named:
        assert re.search(rf"^{table}\b.*=", (ROOT / file).read_text(), re.M), (table, file)
