"""Faults on demand: refused in earnest, read exactly, counted from 1."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import pytest

from galley.engine.faults import Fault, Faults, read_faults
from galley.errors import ConfigError

DEV = {"GALLEY_DEV_MODE": "1"}


def test_without_the_variable_there_are_none() -> None:
    assert read_faults({}) == []
    assert read_faults(DEV) == []


def test_they_are_refused_outside_of_development_mode() -> None:
    for env in ({}, {"GALLEY_DEV_MODE": "0"}):
        with pytest.raises(ConfigError, match="GALLEY_DEV_MODE=1"):
            read_faults({"GALLEY_FAULTS": "1:step1=kill", **env})


def test_the_notation() -> None:
    text = "1:step12=kill, *:start=memory,3:out7+=close, 2:step1+=sleep/0.5"
    for mode in (DEV, {"VLLM_SERVER_DEV_MODE": "1"}):
        assert read_faults({"GALLEY_FAULTS": text, **mode}) == [
            Fault("1:step12=kill", 1, "step", 12, 12, "kill", 0.2),
            Fault("*:start=memory", None, "start", 1, 1, "memory", 0.2),
            Fault("3:out7+=close", 3, "out", 7, float("inf"), "close", 0.2),
            Fault("2:step1+=sleep/0.5", 2, "step", 1, float("inf"), "sleep", 0.5),
        ]


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "1:step=kill",
        "1:start3=kill",
        "1:step3=close",
        "1:out3=leak",
        "1:in3=close",
        "1:step3=explode",
        "1:",
    ],
)
def test_malformed_faults_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="GALLEY_FAULTS"):
        read_faults({"GALLEY_FAULTS": text, **DEV})


def faults(text: str, epoch: int = 1) -> Faults:
    return Faults(read_faults({"GALLEY_FAULTS": text, **DEV}), epoch)


def test_moments_are_counted_apart_and_only_in_their_incarnation() -> None:
    mine = faults("1:out2=close,1:out4+=close,1:step2=raise,2:step1=raise")
    acts = [[f.act for f in mine.reached("out")] for _ in range(6)]
    assert acts == [[], ["close"], [], ["close"], ["close"], ["close"]]
    mine.reached("step")
    with pytest.raises(RuntimeError):
        mine.reached("step")
    mine.reached("step")
    with pytest.raises(MemoryError):
        faults("*:loaded=memory", 7).reached("loaded")


@pytest.mark.parametrize(
    ("act", "code"),
    [("kill", -signal.SIGKILL), ("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT)],
)
def test_signals_end_the_process(act: str, code: int) -> None:
    program = (
        "from galley.engine.faults import *\n"
        f"Faults(read_faults({{'GALLEY_FAULTS': '1:step1={act}', **{DEV}}}), 1).reached('step')"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == code


def test_a_starved_process_gets_no_more_memory() -> None:
    program = (
        "from galley.engine.faults import *\n"
        f"Faults(read_faults({{'GALLEY_FAULTS': '1:step1=starve', **{DEV}}}), 1).reached('step')\n"
        "bytearray(1 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
