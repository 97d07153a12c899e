"""The hint that names an extra's packages."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from galley.config.extras import install_command


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("torch", "torch"),
        ("bench", "matplotlib"),
        ("otel", "opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_the_command_names_the_packages_of_the_extra(extra: str, package: str) -> None:
    command = shlex.split(install_command(extra))
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert any(name.startswith(package) for name in command[4:])
    assert not any("galley" in name for name in command[4:])


def test_pip_accepts_the_command() -> None:
    """Everything is installed here already, so pip resolves it without downloading anything."""
    command = [*shlex.split(install_command("otel")), "--dry-run", "--no-index", "--quiet"]
    subprocess.run(command, check=True, timeout=120)


def test_a_name_that_is_no_extra_is_a_package() -> None:
    assert install_command("triton").endswith("pip install triton")
