"""`galley chat` and `galley complete`: at a terminal, in a pipe, in this process and at a URL."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from galley.config.server import ServerConfig
from tests.cli.terminal import ROOT, Terminal
from tests.server.served import REPLY, Served, serve, tokenizer

SMALL = ["--max-model-len", "1024", "--kv-cache-memory-bytes", "128m"]


def galley(*argv: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "galley", *argv],
        cwd=ROOT,
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal("chat", "--temperature", "0", "--stats", *SMALL)
    yield terminal
    terminal.close()


def test_a_conversation_at_a_terminal(terminal: Terminal) -> None:
    assert "Chatting with SmolLM2-135M-Instruct" in terminal.read("\n> ")
    terminal.type("What is the capital of France?\n")
    assert "Paris" in terminal.read("\n> ")
    terminal.type("And of Italy?\n")
    assert "Rome" in terminal.read("\n> "), "the turns before are part of the prompt"
    # Ctrl-C ends the answer and not the conversation.
    terminal.type("Write a very long story about a dog.\n")
    terminal.read("dog.\n")
    terminal.read(" ")
    terminal.type("\x03")
    counts = re.search(r"(\d+) tokens in, (\d+) out", terminal.read("\n> "))
    assert counts is not None
    assert int(counts[2]) < 900, "the whole answer has 938 tokens"
    terminal.type("/reset\n")
    terminal.read("> ")
    terminal.type("Say hi.\n")
    assert "[33 tokens in" in terminal.read("\n> "), "nothing of before is left"
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(ServerConfig(api_key=("secret",))) as served:
        yield served


def prompts(served: Served) -> list[str]:
    texts = [
        tokenizer().decode(list(memoryview(r.prompt_token_ids).cast("i")), False)
        for r in served.engine.seen
    ]
    served.engine.seen.clear()
    return texts


def test_one_question_to_a_url(served: Served) -> None:
    where = ["--url", f"{served.url}/v1", "--api-key", "secret"]
    done = galley("chat", *where, "--quick", "Where?", "--system-prompt", "Be brief.", "--stats")
    assert (done.returncode, done.stdout) == (0, REPLY + "\n")
    assert re.match(r"\[\d+ tokens in, \d+ out, first after", done.stderr)
    (prompt,) = prompts(served)
    assert "Be brief." in prompt
    assert "Where?" in prompt
    done = galley("complete", *where, "-q", "A text", "--max-tokens", "3")
    assert done.returncode == 0
    assert done.stdout.startswith("A text")
    assert len(done.stdout) < len(REPLY)
    assert prompts(served) == ["A text"]


def test_lines_of_a_pipe_are_turns(served: Served) -> None:
    where = ["--url", f"{served.url}/v1", "--api-key", "secret"]
    done = galley("chat", *where, typed="One?\n\nTwo?\n/reset\nThree?\n/quit\nFour?\n")
    assert (done.returncode, done.stdout) == (0, (REPLY + "\n") * 3)
    one, two, three = prompts(served)
    assert "One?" in two
    assert REPLY in two
    assert "Two?" not in three
    done = galley("complete", *where, typed="One\nTwo\n")
    assert done.returncode == 0
    assert prompts(served) == ["One", "Two"]
    assert "One?" in one


def test_failed_question_does_not_end_the_conversation(served: Served) -> None:
    where = ["--url", f"{served.url}/v1", "--api-key", "secret"]
    for command in ("chat", "complete"):
        done = galley(command, *where, typed="word " * 500 + "\nShort?\n")
        assert done.returncode == 0
        assert done.stdout.endswith(REPLY + "\n")
        assert "256" in done.stderr, "the limit is named"
        served.engine.seen.clear()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--url", "http://127.0.0.1:9/v1", "--quick", "hi"], 1, "no server answers at"),
        (["--url", "http://127.0.0.1:9/v1", "some/model"], 2, "exclude each other"),
        (["/no/such/model", "--quick", "hi"], 2, "/no/such/model"),
        (["--temprature", "0"], 2, "--temperature"),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], code: int, words: str) -> None:
    done = galley("chat", *argv)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_key_is_reported(served: Served) -> None:
    done = galley("chat", "--url", f"{served.url}/v1", "--quick", "hi")
    assert done.returncode == 1
    assert "401" in done.stderr
