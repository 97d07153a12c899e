"""`make` on a machine that lacks something: the first line says which package brings it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What the recipes themselves use.
NEEDED = ("bash", "sh", "make", "git", "g++", "expand", "grep", "sed")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A `PATH` of one folder that has all that is needed, its Python called `python3`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    python(folder, "")
    return folder


def python(folder: Path, before: str) -> None:
    """`python3`: this one, but that `before` is run before every program that it is given."""
    program = folder / "python3"
    program.write_text(
        f"#!{folder}/bash\n"
        f'test "$1" = -c && exec {sys.executable} -c "{before}"$\'\\n\'"$2"\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)


def require(machine: Path, *options: str) -> tuple[int, str]:
    """Exit code and first line of what `make require` says."""
    done = subprocess.run(
        [machine / "make", "require", *options],
        cwd=ROOT,
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout + done.stderr).partition("\n")[0]


def test_nothing_is_said_where_nothing_is_missing(machine: Path) -> None:
    assert require(machine) == (0, "")


def test_no_python(machine: Path) -> None:
    code, line = require(machine, "PYTHON=python3.99")
    assert code == 2
    assert line == "make: no python3.99: apt-get install python3.99"


def test_no_git(machine: Path) -> None:
    (machine / "git").unlink()
    code, line = require(machine)
    assert code == 2
    assert line == "make: no git: apt-get install git"


def test_no_compiler(machine: Path) -> None:
    (machine / "g++").unlink()
    code, line = require(machine)
    assert code == 2
    assert "apt-get install g++" in line


@pytest.mark.parametrize(
    ("before", "package"),
    [
        ("import sys; sys.modules['ensurepip'] = None", "python3-venv"),
        ("import os.path; os.path.exists = lambda _: False", "python3-dev"),
    ],
)
def test_python_without(machine: Path, before: str, package: str) -> None:
    python(machine, before)
    code, line = require(machine)
    assert code == 2
    assert f"apt-get install {package}" in line


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 14, 0)])
def test_python_of_another_age(machine: Path, version: tuple[int, ...]) -> None:
    python(machine, f"import sys; sys.version_info = {version}")
    code, line = require(machine)
    assert code == 2
    assert "Python 3.11 to 3.13 is needed" in line
