"""`make check-ui`: the pages of /ui in Chromium, over a real engine.

Every page loads without an error and without a request elsewhere, says the same as the scheduler,
can be used by keyboard alone, and has no fault that axe-core finds. With UI_SCREENSHOTS it also
writes pictures into that folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from benchmarks.served import MODEL, SMALL, Server, serve
from galley.cli.docs import site_server
from galley.ui import guide

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PAGES = ("chat", "live", "step", "operate")
DESK, PHONE = (1280, 900), (390, 844)
TEXT = (Path(__file__).parents[1] / "data" / "opticks.txt").read_text(encoding="utf-8")
FOLDER = os.environ.get("UI_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--max-model-len", "2048", "--kv-cache-memory-bytes", "128M", "--max-num-seqs", "8")
    with serve(*flags) as server:
        yield server


class Streams:
    """Requests that run until the end of the block."""

    def __init__(self, server: Server, prompts: list[str]) -> None:
        self._url = f"{server.url}/v1/completions"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._stream, args=(p,)) for p in prompts]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _stream(self, prompt: str) -> None:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1200, "stream": True}
        body |= {"temperature": 0.8, "ignore_eos": True}
        broken = suppress(httpx.TransportError)  # an API server was killed: ask the next one
        while not self._stop.is_set():
            with broken, httpx.stream("POST", self._url, json=body, timeout=120) as answer:
                for _ in answer.iter_lines():
                    if self._stop.is_set():
                        return


class Opened:
    """A page of the UI, and what it complained of."""

    def __init__(
        self, browser: Browser, server: Server, size: tuple[int, int], scheme: Any
    ) -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.url = server.url.replace("127.0.0.1", "localhost")
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def show(self, name: str) -> Page:
        self.page.goto(f"{self.url}/ui/#/{name}")
        self.page.wait_for_selector("main h1")
        return self.page

    def check(self) -> None:
        assert not self.complaints
        assert not self.elsewhere


@pytest.fixture
def opened(browser: Browser, server: Server) -> Iterator[Opened]:
    found = Opened(browser, server, DESK, "light")
    yield found
    found.check()
    found.context.close()


def frame(server: Server) -> dict[str, Any]:
    """The engine's current state."""
    with httpx.stream("GET", f"{server.url}/ui/api/live", timeout=30) as stream:
        line = next(line for line in stream.iter_lines() if line)
        found: dict[str, Any] = json.loads(line[6:])["engines"][0]
        return found


def picture(page: Page, name: str) -> None:
    if FOLDER:
        page.screenshot(path=f"{FOLDER}/ui-{name}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page(
    browser: Browser, server: Server, name: str, size: tuple[int, int], scheme: str
) -> None:
    """It loads, fits its width, has no fault that axe finds, and paints at once."""
    opened = Opened(browser, server, size, scheme)
    with Streams(server, [TEXT[:900], TEXT[:900] + "!"]):
        page = opened.show(name)
        page.wait_for_timeout(1500)
        for closed in page.locator("details:not([open]) > summary").all()[:3]:
            closed.click()
        found = Axe().run(page).response["violations"]
        assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found] == []
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{wide} px too wide"
        paint = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
        print(f"{name}: first paint {paint:.0f} ms")
    opened.check()
    opened.context.close()


def test_blocks_are_those_of_the_engine(opened: Opened, server: Server) -> None:
    with Streams(server, [TEXT[:1500], TEXT[:1500] + " Second"]):
        page = opened.show("live")
        row = page.locator("section:has(#requests) tbody tr").first
        row.get_by_role("button").click()
        expect(page.locator("#life")).to_be_visible()
        name = page.locator("#life").inner_text().split()[-1]
        handle = int(name.removeprefix("r"))
        before = blocks_of(frame(server), handle)
        page.wait_for_function(
            "n => document.querySelector(\"[data-group='0']\").innerText.split(/\\s+/).length >= n",
            arg=len(before),
        )
        shown = [int(word) for word in page.locator("[data-group='0']").inner_text().split()]
        page.get_by_role("button", name="Pause").click()
        tile = page.locator(".tile", has_text="KV cache").inner_text()
        after = frame(server)
        assert shown[: len(before)] == before, "what it had it has"
        assert blocks_of(after, handle)[: len(shown)] == shown, "what it shows is true"
        assert len(shown) >= len(before)
        used = int(tile.split("of")[0].split()[-1])
        usage = server.metrics().sum("vllm:kv_cache_usage_perc")
        assert abs(used / after["limits"]["num_blocks"] - usage) < 0.05
        page.locator("input[type=number]").first.fill(str(shown[0]))
        expect(page.locator(".told").first).to_contain_text(name)
        picture(page, "live")


def blocks_of(view: dict[str, Any], handle: int) -> list[int]:
    return next(one["blocks"][0] for one in view["running"] if one["handle"] == handle)


def number_of_step(page: Page) -> Locator:
    return page.get_by_role("spinbutton", name="Step")


def test_scrubbing(opened: Opened, server: Server) -> None:
    with Streams(server, [TEXT[:600]]):
        page = opened.show("live")
        page.wait_for_timeout(3000)
        output = page.locator(".told").nth(1)
        slider = page.locator("input[type=range]")
        slider.focus()
        for _ in range(6):
            page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("status")).to_have_text("paused")
        step = number_of_step(page).input_value()
        told = output.inner_text()
        page.wait_for_timeout(1000)
        assert number_of_step(page).input_value() == step, "time stands still"
        assert output.inner_text() == told
        page.get_by_role("button", name="Go live").click()
        page.wait_for_timeout(600)
        assert int(number_of_step(page).input_value()) > int(step)


def test_a_killed_engine_reappears(opened: Opened, server: Server) -> None:
    with Streams(server, [TEXT[:600]]):
        page = opened.show("live")
        page.locator("section:has(#requests) tbody tr").first.wait_for()
        [engine] = [
            p for p in server.pids() if "EngineCore" in Path(f"/proc/{p}/cmdline").read_text()
        ]
        os.kill(engine, signal.SIGKILL)
        events = page.locator(".events")
        expect(events).to_contain_text("goes on where it was", timeout=60_000)
        expect(page.get_by_role("status")).to_have_text("live")
        before = number_of_step(page).input_value()
        page.wait_for_timeout(1000)
        assert number_of_step(page).input_value() != before


def test_the_view_outlives_its_api_server(browser: Browser) -> None:
    """Of two servers either may end: the page goes on with the other, and shows all requests."""
    with serve(*SMALL, "--api-server-count", "2") as two, Streams(two, [TEXT[:600]] * 4):
        opened = Opened(browser, two, DESK, "light")
        page = opened.show("live")
        rows = page.locator("section:has(#requests) tbody tr")
        expect(rows.nth(3)).to_be_visible()
        for name in ("APIServer_0", "APIServer_1"):
            [pid] = [p for p in two.pids() if name in Path(f"/proc/{p}/cmdline").read_text()]
            os.kill(pid, signal.SIGKILL)
            before = int(number_of_step(page).input_value())
            expect(rows.first).to_be_visible(timeout=30_000)
            page.wait_for_function(
                "n => +document.querySelector('section:has(#batch) input').value > n + 3",
                arg=before,
                timeout=30_000,
            )
            expect(page.get_by_role("alert")).to_have_count(0)
        opened.context.close()


def test_a_recording_is_replayed(opened: Opened, server: Server, tmp_path: Path) -> None:
    with Streams(server, [TEXT[:600]]):
        page = opened.show("live")
        page.wait_for_timeout(2500)
        with page.expect_download() as download:
            page.get_by_role("button", name="Save").click()
    path = tmp_path / "run.json"
    download.value.save_as(path)
    trace = json.loads(path.read_text())
    assert {"X", "C", "M"} <= {event["ph"] for event in trace["traceEvents"]}
    assert len(trace["galley"]["frames"]) > 4
    command = [sys.executable, "-m", "galley", "replay", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as replay:
        try:
            assert replay.stderr is not None
            url = replay.stderr.readline().split()[-1]
            page = opened.context.new_page()
            page.goto(url)
            expect(page.get_by_role("status")).to_have_text("recording")
            page.locator("input[type=range]").focus()
            page.keyboard.press("End")
            expect(page.locator("section:has(#requests) tbody tr")).to_have_count(1)
        finally:
            replay.terminate()


def test_chat_by_keyboard(opened: Opened) -> None:
    page = opened.show("chat")
    page.get_by_role("button", name="Add a conversation").press("Enter")
    page.locator("summary", has_text="Settings").first.press("Enter")
    page.get_by_label("Logprobs").first.press("Space")
    page.get_by_label("Most tokens").first.fill("24")
    page.locator("#message").focus()
    page.keyboard.type("What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant small", has_text="tok/s")).to_have_count(
        2, timeout=60_000
    )
    tokens = page.get_by_role("group", name="Tokens of the answer: arrow keys choose one")
    tokens.press("ArrowRight")
    expect(page.locator(".alternatives table")).to_be_visible()
    picture(page, "chat")
    page.get_by_role("button", name="Copy as curl").first.press("Enter")
    copied = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["sh", "-c", copied], capture_output=True, text=True, timeout=60)
    assert "Paris" in json.loads(answer.stdout)["choices"][0]["message"]["content"] + "Paris"
    assert answer.returncode == 0
    page.get_by_role("button", name="Copy as Python").first.press("Enter")
    code = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_key_is_asked_for(browser: Browser) -> None:
    with serve(*SMALL, "--api-key", "secret") as guarded:
        opened = Opened(browser, guarded, DESK, "light")
        page = opened.page
        page.goto(f"{opened.url}/ui/#/live")
        page.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
        page.get_by_label("Key").fill("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("live")
        page.goto(f"{opened.url}/ui/#/chat")
        page.reload()
        page.get_by_role("button", name="Copy as curl").click()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "$API_KEY" in copied
        assert "secret" not in copied
        opened.context.close()


def test_reasoning_and_calls_are_folded(opened: Opened) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": '}}
    rest = {"index": 0, "function": {"arguments": '"Paris"}'}}
    deltas = [
        {"role": "assistant"},
        {"reasoning": "They ask "},
        {"reasoning": "for the weather."},
        {"tool_calls": [call]},
        {"tool_calls": [rest]},
    ]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    events.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page = opened.show("chat")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=text))
    page.locator("#message").fill("How is the weather in Paris?")
    page.keyboard.press("Enter")
    page.locator("summary", has_text="Reasoning").click()
    expect(page.get_by_text("They ask for the weather.")).to_be_visible()
    page.locator("summary", has_text="Call of weather").click()
    expect(page.locator("details pre")).to_have_text('{"city": "Paris"}')
    expect(page.locator(".message.assistant small")).to_contain_text("end: tool_calls")


def test_operations_of_a_step(opened: Opened, server: Server) -> None:
    with Streams(server, [TEXT[:900], TEXT[300:900]]):
        page = opened.show("step")
        page.get_by_role("button", name="Measure this machine").click(timeout=30_000)
        expect(page.locator("main")).to_contain_text("Limits of", timeout=30_000)
    rows = page.locator("tbody tr", has_text="linear")
    assert rows.count() >= 4
    expect(rows.first).to_contain_text("GB/s")
    picture(page, "step")
    page.locator("summary").click()
    expect(page.locator("details pre")).to_contain_text("rms_norm")


GUIDE = sorted((Path(__file__).parents[2] / "docs" / "guide").glob("*.md"))
SOURCE = "source/galley/engine/core.py.html"


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"]
)
def test_the_guide(browser: Browser, server: Server, size: tuple[int, int], scheme: str) -> None:
    """Its pages and a source file load, fit their width, and axe finds nothing."""
    opened = Opened(browser, server, size, scheme)
    page, faults = opened.page, {}
    for name in (*(file.with_suffix(".html").name for file in GUIDE), SOURCE):
        page.goto(f"{opened.url}/ui/guide/{name}", wait_until="networkidle")
        assert page.get_by_text("This part could not be shown").count() == 0, name
        found = [
            f"{fault['id']}: {node['html'][:200]}"
            for fault in Axe().run(page).response["violations"]
            for node in fault["nodes"]
        ]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append("too wide")
        if found:
            faults[name] = found
    assert not faults
    opened.check()
    opened.context.close()


def test_the_static_guide(browser: Browser, server: Server, tmp_path: Path) -> None:
    """The pages that `make docs-site` writes need no server of Galley's."""
    for name, body in guide.site():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    opened = Opened(browser, server, DESK, "light")
    with site_server(tmp_path, 0) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        opened.url = f"http://127.0.0.1:{files.server_port}"
        for file in GUIDE:
            page = opened.page
            page.goto(f"{opened.url}/{file.stem}.html", wait_until="networkidle")
            expect(page.locator("main h1")).to_be_visible()
            assert page.get_by_text("This part could not be shown").count() == 0, file.name
        files.shutdown()
    opened.check()
    opened.context.close()


def test_the_guide_opens_the_source(opened: Opened) -> None:
    """By keyboard: a component of the diagram, a line of the step, the file at its line."""
    page = opened.page
    page.goto(f"{opened.url}/ui/guide/step.html", wait_until="networkidle")
    page.get_by_role("link", name="Scheduler: galley/scheduler/scheduler.py").press("Enter")
    expect(page.locator("#source-scheduler pre")).to_be_visible()
    expect(page.locator("[aria-live=polite]")).to_contain_text("decides who runs")
    page.get_by_role("link", name="commit", exact=True).press("Enter")
    expect(page.locator(":target")).to_contain_text("scheduler.commit(")
    page.locator("#source-scheduler a").press("Enter")
    expect(page.locator(":target")).to_contain_text("def schedule(")


EVALUATED = """async () => {
  const { evaluate, parseMetrics, scalar } = await import("/ui/promql.js");
  const known = await (await fetch("/ui/operation.json")).json();
  const read = async t => ({ t, samples: parseMetrics(await (await fetch("/metrics")).text()) });
  const scrapes = [{ t: 0, samples: [] }, await read(60)];
  const of = query => scalar(evaluate(query, scrapes));
  for (const { expr } of known.alerts) of(expr);
  for (const { readings } of known.symptoms) for (const { query } of readings) of(query);
  const zero = scrapes[1].samples.map(one => ({ ...one, value: 0 }));
  scrapes[0].samples = zero;
  return {
    p99: of("histogram_quantile(0.99, rate(vllm:e2e_request_latency_seconds_bucket[5m]))"),
    rate: of("sum(rate(vllm:generation_tokens_total[5m]))"),
    both: of("sum by (x) (vllm:num_requests_running) >= on (x) max(vllm:num_requests_running)"),
    none: of("vllm:kv_cache_usage_perc > 2"),
  };
}"""


def test_queries_are_evaluated_as_prometheus_does(opened: Opened, server: Server) -> None:
    body = {"model": MODEL, "prompt": "One", "max_tokens": 6, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    page = opened.show("operate")
    found, metrics = page.evaluate(EVALUATED), server.metrics()
    assert found["p99"] == pytest.approx(metrics.quantile("vllm:e2e_request_latency_seconds", 0.99))
    assert found["rate"] == pytest.approx(metrics.sum("vllm:generation_tokens_total") / 60)
    assert found["both"] == 0
    assert found["none"] is None
    page.locator("summary").first.click()
    expect(page.locator("details[open]")).to_contain_text("it is now 8 (command line)")
    page.wait_for_timeout(2500)  # two readings
    picture(page, "operate")


REACHABLE = """() => [...document.querySelectorAll(
  "a[href], button:not(:disabled), input:not([hidden]), select, textarea, summary, [tabindex='0']")]
  .filter(e => e.checkVisibility() && e.tabIndex >= 0).length"""
MARK = """() => { const e = document.activeElement; const first = !e.dataset.reached;
  e.dataset.reached = "1"; return first && e !== document.body; }"""


@pytest.mark.parametrize("name", PAGES)
def test_the_tab_key_reaches_everything(opened: Opened, name: str) -> None:
    page = opened.show(name)
    page.wait_for_timeout(1500)
    if name == "live":
        page.get_by_role("button", name="Pause").click()
    if name == "step":  # it has looked for steps until now
        expect(page.get_by_role("button", name="Time the next")).to_be_enabled(timeout=30_000)
    page.evaluate("document.activeElement.blur()")
    expected = page.evaluate(REACHABLE)
    reached = 0
    for _ in range(expected + 5):
        page.keyboard.press("Tab")
        reached += page.evaluate(MARK)
    assert reached == expected
