"""`galley completion`: the scripts, run by the shells that there are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from galley.cli.completion import SHELLS, commands
from galley.cli.main import COMMANDS, main

PROBES = {
    # Words after `galley`, and what must be offered.
    "bash": """source {script}
ask() {{ COMP_WORDS=(galley "$@"); COMP_CWORD=$#; _galley; echo "${{COMPREPLY[*]}}"; }}
ask ser; ask serve --max-model; ask serve --kv-cache-dtype ""; ask bench thr; ask completion fi""",
    "fish": """source {script}
complete -C "galley ser"; complete -C "galley serve --max-model"
complete -C "galley serve --kv-cache-dtype "; complete -C "galley bench thr"
complete -C "galley completion fi\"""",
}
OFFERED = ("serve", "--max-model-len", "auto", "throughput", "fish")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_completes(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / f"galley.{shell}"
    script.write_text(capsys.readouterr().out)
    assert all(name in script.read_text() for name in COMMANDS)
    if shutil.which(shell) is None:
        return
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), "it is a script of that shell"
    if shell in PROBES:
        probe = PROBES[shell].format(script=script).replace('fi\\"', 'fi"')
        done = subprocess.run([shell, "-c", probe], capture_output=True, text=True, cwd=tmp_path)
        words = done.stdout.split()
        assert [word for word in OFFERED if word not in words] == [], done.stdout + done.stderr


def test_every_command_is_known_with_its_flags() -> None:
    table = commands()
    assert set(table) == set(COMMANDS)
    assert "throughput" in table["bench"].words
    for name in ("serve", "chat", "run-batch", "inspect", "doctor", "cache"):
        assert len(table[name].options) > 3, name


def test_a_shell_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
