"""`galley chat` and `galley complete`: at a terminal, in a pipe, in this process and at a URL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from galley.cli.answer import BOLD, RESET, TerminalWriter
from galley.config.server import ServerConfig
from tests.cli.terminal import ROOT, Terminal
from tests.server.served import REPLY, Served, serve, tokenizer

SMALL = ["--max-model-len", "1024", "--kv-cache-memory-bytes", "128m"]


def galley(
    *argv: str, typed: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "galley", *argv],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """The environment, with a history of one's own."""
    return {"XDG_STATE_HOME": str(tmp_path)}


@pytest.fixture
def terminal(state: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal("chat", "--temperature", "0", "--stats", *SMALL, env=state)
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
    # At the prompt it discards the line.
    terminal.type("half a li")
    terminal.read("half a li")
    terminal.press("\x03", "/quit exits")
    terminal.read("\n> ")
    terminal.type("/reset\n")
    assert "cleared" in terminal.read("\n> ")
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


def url(served: Served) -> list[str]:
    return ["--url", f"{served.url}/v1", "--api-key", "secret"]


def test_a_pipe_is_one_message(served: Served) -> None:
    done = galley("chat", *url(served), typed="One?\n\nTwo?\n")
    assert (done.returncode, done.stdout) == (0, REPLY + "\n")
    (prompt,) = prompts(served)
    assert "One?\n\nTwo?" in prompt
    done = galley("complete", *url(served), typed="One\nTwo\n")
    assert done.returncode == 0
    assert prompts(served) == ["One\nTwo"]
    done = galley("chat", *url(served), typed="word " * 500)
    assert done.returncode == 1
    assert "256" in done.stderr, "the limit is named"
    served.engine.seen.clear()


@contextmanager
def chatting(served: Served, state: dict[str, str], *flags: str, term: str = "dumb") -> Any:
    terminal = Terminal("chat", *url(served), *flags, term=term, env=state)
    try:
        terminal.read("> ")
        yield terminal
    finally:
        terminal.close()


def say(terminal: Terminal, text: str) -> str:
    terminal.type(text + "\n")
    return terminal.read("\n> ")


def test_commands_change_the_conversation(
    served: Served, state: dict[str, str], tmp_path: Path
) -> None:
    with chatting(served, state) as terminal:
        assert "/retry" in say(terminal, "/help")
        assert "no system message" in say(terminal, "/system")
        say(terminal, "/system Be brief.")
        assert REPLY in say(terminal, "One?")
        assert "Be brief." in prompts(served)[0]
        say(terminal, "/retry")
        (prompt,) = prompts(served)
        assert prompt.count("One?") == 1
        assert REPLY not in prompt
        say(terminal, "/continue")
        (prompt,) = prompts(served)
        assert prompt.endswith(REPLY)
        say(terminal, f"/save {tmp_path}/saved.json")
        saved = json.loads((tmp_path / "saved.json").read_text())
        assert [m["role"] for m in saved] == ["system", "user", "assistant"]
        assert saved[2]["content"] == REPLY * 2
        assert "1 messages" not in say(terminal, "/undo")
        say(terminal, "Two?")
        assert "One?" not in prompts(served)[0]
        say(terminal, f"/load {tmp_path}/saved.json")
        say(terminal, "Three?")
        assert "One?" in prompts(served)[0]
        assert "top_p" in say(terminal, "/set top_q 1"), "what can be set is named"
        say(terminal, "/set max_tokens 2")
        assert "[cut at 2 tokens; /continue goes on]" in say(terminal, "Four?")
        assert "Did you mean /stats?" in say(terminal, "/stat")
        say(terminal, "/stats")
        assert "tokens in" in say(terminal, "Five?")
        served.engine.seen.clear()
        terminal.type("/bye\n")
        assert terminal.process.wait(30) == 0
    with chatting(served, state) as terminal:
        terminal.type("\x10\x10\n")  # Ctrl-P: the line before, of the chat before
        assert "no command /bye" not in terminal.read("Five?")
        assert "Five?" in (tmp_path / "galley" / "chat_history").read_text()
        assert (tmp_path / "galley" / "chat_history").stat().st_mode & 0o77 == 0


def test_several_lines_are_one_message(served: Served, state: dict[str, str]) -> None:
    with chatting(served, state, "--no-history") as terminal:
        terminal.type('"""a = 1\n')
        terminal.read("\n. ")
        terminal.type("b = 2\n")
        terminal.read("\n. ")
        terminal.type('"""\n')
        terminal.read(REPLY)
        assert "a = 1\nb = 2" in prompts(served)[-1]  # others' may come late
        terminal.read("\n> ")
        terminal.type("one \\\n")
        terminal.read("\n. ")
        terminal.type("two\n")
        terminal.read(REPLY)
        assert "one \ntwo" in prompts(served)[0]
        terminal.read("\n> ")
        terminal.type("/etc/hosts is what?\n")
        terminal.read(REPLY)
        assert "/etc/hosts is what?" in prompts(served)[0]
    assert not list(Path(state["XDG_STATE_HOME"]).iterdir())
    with chatting(served, state, term="xterm") as terminal:
        terminal.type("\x1b[200~first\nsecond\nthird\x1b[201~")
        terminal.read("third")
        terminal.type("\n")
        terminal.read(REPLY.split()[0])
        (prompt,) = prompts(served)
        assert "first\nsecond\nthird" in prompt


def test_the_oldest_turns_make_room(served: Served, state: dict[str, str]) -> None:
    with chatting(served, state) as terminal:
        for i in range(8):
            shown = say(terminal, f"Question {i}: " + "word " * 50)
            assert REPLY in shown
        assert "oldest messages were left out" in shown
        last = prompts(served)[-1]
        assert "Question 7" in last
        assert "Question 0" not in last
        # A message that is too long by itself is refused; the chat goes on.
        assert "256" in say(terminal, "word " * 300)
        assert REPLY in say(terminal, "Short?")
        served.engine.seen.clear()


def test_markdown_is_shown_as_styles(capsys: pytest.CaptureFixture[str]) -> None:
    text = "# A title\nSome **bold words** and `code`, then a line.\n```py\nx = 1  # **no**\n```\n"
    for step in (1, 7):
        output = TerminalWriter(30, styled=True)
        for i in range(0, len(text), step):
            output.write(text[i : i + step])
        output.end()
        shown = capsys.readouterr().out
        plain = re.sub(r"\x1b\[\d*m", "", shown)
        assert plain.splitlines()[:3] == ["# A title", "Some bold words and code, then ", "a line."]
        assert "x = 1  # **no**" in plain
        assert f"{BOLD}bold words{RESET}" in shown
        assert shown.count(BOLD) == 2, "the title and the bold words"
    output = TerminalWriter(10, styled=False)
    output.write("Some **bold** word")
    output.end()
    assert capsys.readouterr().out == "Some \n**bold** \nword\n"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--url", "http://127.0.0.1:9/v1", "--quick", "hi"], 1, "no server answers at"),
        (["--url", "http://127.0.0.1:9/v1", "some/model"], 2, "give one of them"),
        (["/no/such/model", "--quick", "hi"], 2, "/no/such/model"),
        (["--temprature", "0"], 2, "--temperature"),
        (["What is the capital of France?"], 2, "galley chat -q 'What is the capital of France?'"),
        (["--quick", ""], 2, "--quick is empty"),
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
    assert "--api-key" in done.stderr


def test_key_and_url_as_other_programs_have_them(served: Served) -> None:
    where = served.url.removeprefix("http://")
    done = galley("chat", "--url", where, "-q", "hi", env={"OPENAI_API_KEY": "secret"})
    assert (done.returncode, done.stdout) == (0, REPLY + "\n")
    served.engine.seen.clear()


def test_complete_has_flags_of_its_own() -> None:
    shown = galley("complete", "--help").stdout
    assert "Complete a text" in shown
    assert "--system-prompt" not in shown
    done = galley("complete", "-q", "hi", "--system-prompt", "x")
    assert done.returncode == 2
