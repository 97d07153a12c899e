"""docs/architecture.md: the path of a request is as short as it says."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_path_of_a_request_can_be_read_in_an_afternoon() -> None:
    section = PAGE.partition("## The path of a request")[2].partition("\n## ")[0]
    files = re.findall(r"^\| `(\S+)` \|", section, re.M)
    told = re.search(r"these (\d+) files, under ([\d,]+) lines", section)
    assert told is not None
    assert len(files) == len(set(files)) == int(told[1]) <= 14
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert lines < int(told[2].replace(",", "")) <= 3500, f"they have {lines} lines"


def test_the_files_that_the_page_names_exist() -> None:
    for file in re.findall(r"`((?:galley|csrc|docs)/[\w/]+\.(?:py|cpp|h|md))`", PAGE):
        assert (ROOT / file).is_file(), file
