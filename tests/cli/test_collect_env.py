"""`galley collect-env`: contents of a bug report, without secrets."""

import pytest

from galley import __version__
from galley.cli.main import main


def test_reports_facts_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hidden")
    monkeypatch.setenv("GALLEY_NUM_THREADS", "7")
    assert main(["collect-env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["galley"].split(",")[0] == __version__
    assert lines["numpy"][0].isdigit()
    assert "usable of" in lines["cores"]
    assert lines["GALLEY_NUM_THREADS"] == "7"
    assert lines["VLLM_API_KEY"] == "***"
    assert main(["collect-env", "--no-such-flag"]) == 2
