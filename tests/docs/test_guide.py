"""The guide in docs/guide, items 1 to 36 of the checklist: complete, true, and runnable."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.served import SMALL, Server, serve
from galley.cli import plan as plan_command
from galley.cli.serve import parser as serve_parser
from galley.config.vllm_flags import disposition
from galley.planning.advice import cost_per_million
from galley.ui import guide
from tests.ui.node import run_node

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGES = {path.name: path.read_text() for path in sorted(GUIDE.glob("*.md"))}
SCRIPT = (GUIDE / "guide.js").read_text()
ROLES = {
    name: re.findall(r'"([\w-]+\.md)"', pages)
    for name, pages in re.findall(r"(decide|operate|engine): \{[^}]*?pages: \[([^\]]*)\]", SCRIPT)
}


def recorder() -> Any:
    """docs/guide/record.py"""
    spec = importlib.util.spec_from_file_location("record", GUIDE / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(name: str) -> Any:
    return json.loads((GUIDE / "data" / f"{name}.json").read_text())


def section(page: str, title: str) -> str:
    """A section of a page, without its heading."""
    return PAGES[page].partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of a table's lines, without the head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines][1:]


# --- paths, pages, sources ------------------------------------------------------------------------


def test_three_paths_and_everything() -> None:
    """Items 1 and 3."""
    assert list(ROLES) == ["decide", "operate", "engine"]
    listed = re.findall(r'data-page="([\w-]+\.md)"', PAGES["index.md"])
    assert listed == [page for pages in ROLES.values() for page in pages]
    assert set(listed) == set(PAGES) - {"index.md", "references.md"}
    for text in ("Show everything", "You have finished this path"):
        assert text in SCRIPT
    assert run_node(GUIDE, 'guide.neighbours("cost.md", "decide")', "guide")["after"] is None
    assert run_node(GUIDE, 'guide.roleOf("tune.md", "decide")', "guide") == "operate"


@pytest.mark.parametrize("name", PAGES)
def test_each_page_stands_by_itself(name: str) -> None:
    """Items 2 and 26: a title, its scripts, links that lead somewhere, parts that exist."""
    text = PAGES[name]
    assert text.startswith("# ")
    assert text.count('<script type="module" src="guide.js"></script>') == 1
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("#"):
            continue
        file, _, anchor = target.partition("#")
        assert (GUIDE / file).is_file(), target
        if anchor and not anchor.startswith("ref-"):
            headings = re.findall(r"^#+ (.+)$", (GUIDE / file).read_text(), re.M)
            ids = {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", h.lower())) for h in headings}
            assert anchor in ids, target
    for part in re.findall(r'data-part="(\w+)"', text):
        assert part in ("paths", "tabs") or (GUIDE / f"{part}.js").is_file(), part
    for file in re.findall(r"`((?:galley|deploy|docs)/[\w/.-]+)`", text):
        assert (ROOT / file).exists(), file


def test_every_citation_is_in_the_list() -> None:
    """Items 4 and 27."""
    sources = {int(number): name for number, name, _ in rows(
        re.sub(r'<a id="ref-\d+"></a>', "", PAGES["references.md"]))}  # fmt: skip
    cited = {int(n) for text in PAGES.values() for n in re.findall(r"\[\[(\d+)\]\]", text)}
    assert cited == set(sources) == set(range(1, len(sources) + 1))
    assert all(re.fullmatch(r"\[.+\]\(https://\S+\)", name) for name in sources.values())
    assert "November 2026" in PAGES["references.md"]


def test_plain_words_beside_each_topic() -> None:
    """Items 28 and 29."""
    topics = [*ROLES["engine"], "fit.md", "cost.md", "serve.md", "tune.md"]
    for name in topics:
        assert "> **In everyday words.**" in PAGES[name], name
    terms = " ".join(row[0] for row in rows(section("concepts.md", "Terms")))
    for term in ("TTFT", "ITL", "prefill", "decode", "KV cache", "preemption", "fragmentation"):
        assert term in terms


def test_the_static_pages_lead_somewhere() -> None:
    """The pages of `make docs-site`: every address within the guide is there, and no Markdown."""
    made = dict(guide.site())
    assert {name.removesuffix(".md") + ".html" for name in PAGES} <= set(made)
    assert {f"source/{part['file']}.html" for part in data("code").values()} <= set(made)
    for name, body in made.items():
        if not name.endswith(".html"):
            continue
        for address in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', body.decode()):
            file = os.path.normpath(Path(name).parent / address)
            if file.startswith("../"):  # of the site's other pages
                file = file.removeprefix("../").replace(".html", ".md")
                assert (ROOT / "docs" / file).is_file(), (name, address)
            else:
                assert file in made, (name, address)


def test_source_files_are_shown_and_nothing_else() -> None:
    """Item 35: a page of each file that the guide names, with an address for each line."""
    shown = guide.read("source/galley/engine/core.py.html")
    assert shown is not None
    lines = (ROOT / "galley" / "engine" / "core.py").read_text().splitlines()
    assert shown.body.count(b'<span id="L') == len(lines)
    others = ("source/galley/../pyproject.py", "source/setup.py.html", "source/galley/x.py.html")
    for name in (*others, "source/galley/planning/devices.toml.html", "record.py", "../ui.html"):
        assert guide.read(name) is None, name


# --- decide ---------------------------------------------------------------------------------------


def test_questions_and_classes_of_models() -> None:
    """Items 7 and 8: four cards each; the commands run."""
    assert section("fit.md", "Four questions").count("<details>") == 4
    classes = rows(section("fit.md", "Classes of models"))
    assert len(classes) == 4
    for *_, command in classes:
        words = command.strip("`").split()
        assert words[0] == "galley"
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_features_hardware_and_engines() -> None:
    """Items 6, 9, 10 and 30."""
    features = rows(section("features.md", "What each feature means for you"))
    assert len(features) == 9
    assert all(len(row) == 4 and all(row) for row in features)
    assert section("features.md", "Hardware").count('class="cell"') == 10
    engines = [row[0].split(" [")[0] for row in rows(section("features.md", "Engines"))]
    assert engines == ["vLLM", "TGI", "TensorRT-LLM", "SGLang", "llama.cpp", "Galley"]
    measured = (ROOT / "docs" / "performance.md").read_text()
    for ratio in re.findall(r"(\d\.\d\d) times", section("features.md", "Engines")):
        assert ratio in measured


def test_costs() -> None:
    """Item 20: the calculator's formula is the planner's."""
    given = "{price: 2.5, rate: 800, utilisation: 0.5, api: 2}"
    found = run_node(GUIDE, f"price.cost({given})", "price")
    assert found["million"] == pytest.approx(cost_per_million(2.5, 400))
    assert cost_per_million(2.5, found["breakEvenRate"]) == pytest.approx(2)
    assert found["breakEvenUtilisation"] == pytest.approx(found["breakEvenRate"] / 800)


def test_rent_lease_or_buy() -> None:
    """Checklist 259: when each pays, who supports it, and that accuracy is validated."""
    text = section("cost.md", "Rent, lease or buy")
    assert len(re.findall(r"^\* \*\*", text, re.M)) == 3
    assert "support contract" in text
    assert "](../evaluation.md)" in text


def test_phases_and_roles() -> None:
    """Items 21 and 22."""
    phases = section("cost.md", "Three phases of adoption")
    assert len(re.findall(r"^\d\. \*\*", phases, re.M)) == phases.count("*Exit criteria:*") == 3
    assert section("cost.md", "Roles").count('class="cell"') == 4


# --- operate --------------------------------------------------------------------------------------


def flags_exist(text: str) -> list[str]:
    """The flags that a text names, each of which `galley serve` or `galley plan` takes."""
    known = {flag.option for flag in serve_parser().flags.values()}
    known |= {flag.option for flag in plan_command.parser().flags.values()}
    named = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)))
    for flag in named:
        name = flag.removeprefix("--").replace("-", "_")
        assert flag in known or disposition(name)[0] in ("refused", "hint"), flag
    return named


def test_levers_metrics_and_the_dashboard(server: Server) -> None:
    """Items 23, 33 and 34: flags, metrics and queries are the program's."""
    levers = rows(section("tune.md", "Eight levers"))
    assert len(levers) == 8
    assert all(len(row) == 4 for row in levers)
    assert len(flags_exist(section("tune.md", "Eight levers"))) == 8
    served = server.get("/metrics")
    for name, kind, _, alert in rows(section("tune.md", "Metrics")):
        assert f"# TYPE {name.strip('`')} {kind}" in served, name
        assert alert
    panels = json.loads((ROOT / "deploy/grafana/galley.json").read_text())["panels"]
    queries: dict[str, list[str]] = {}
    for panel in panels:
        for target in panel.get("targets", ()):
            expression = re.sub(r"\{[^}]*\}", "", target["expr"])
            queries.setdefault(panel["title"], []).append(expression)
    shown = rows(section("tune.md", "Four rows of the dashboard"))
    titles = {panel["title"] for panel in panels}
    assert len({row for row, *_ in shown}) == 4
    for row, panel, query in shown:
        assert row in titles
        assert query.strip("`") in queries[panel]


def test_symptoms_and_checklists(server: Server) -> None:
    """Items 24 and 25."""
    page = PAGES["check.md"]
    served = server.get("/metrics")
    for metric in set(re.findall(r"`((?:vllm|galley):\w+)`", page)):
        assert f"# TYPE {metric} " in served, metric
    assert section("check.md", "From a symptom to a flag").count("<details>") == 3
    assert len(rows(section("check.md", "Security"))) >= 8
    assert len(rows(section("check.md", "Resilience"))) >= 6
    assert len(flags_exist(page)) > 12


def test_the_tuning_lab_moves_as_it_should(tmp_path: Path) -> None:
    """Item 18: predictions for each workload, budget and number of requests."""
    lab = data("lab")
    assert len(lab["profiles"]) == 4
    for profile in lab["profiles"].values():
        assert profile["text"]
        found = {(row["concurrency"], row["budget"]): row for row in profile["rows"]}
        assert set(found) == {(c, b) for c in lab["concurrency"] for b in lab["budgets"]}
        for budget in lab["budgets"]:
            line = [found[c, budget] for c in lab["concurrency"]]
            assert line[-1]["tokens"] > line[0]["tokens"]
            assert line[-1]["itl"] > line[0]["itl"]
            assert [row["kv"] for row in line] == sorted(row["kv"] for row in line)
    record, tools = recorder(), lab["profiles"]["tools"]
    assert tools["rows"][0] == record.prediction(
        record.llama_8b(tmp_path), tools, 1, lab["budgets"][0]
    )


def test_patterns(server: Server) -> None:
    """Item 32: each command of the tables has flags that exist, or is a file."""
    for title in ("Scaling patterns", "Patterns for several models"):
        table = rows(section("serve.md", title))
        assert len(table) >= 4
        for _, _, tradeoff, how in table:
            assert tradeoff
            how = how.strip("`")
            if how.startswith("galley serve "):
                serve_parser().parse(how.split()[2:])
            elif how.startswith("galley plan "):
                plan_command.parser().parse(how.split()[2:])
            else:
                assert (ROOT / how).is_file()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(*SMALL) as server:
        yield server


def test_the_manifest_has_flags_that_exist() -> None:
    """Items 27 and 36; test_snippets.py runs the other snippets."""
    import yaml

    [manifest] = re.findall(r"^```yaml\n(.*?)^```$", PAGES["serve.md"], re.M | re.S)
    [container] = yaml.safe_load(manifest)["containers"]
    serve_parser().parse(container["args"])


# --- inside the engine ----------------------------------------------------------------------------


def test_topics() -> None:
    """Item 5: seven tabs, each with when it applies."""
    topics = section("concepts.md", "Seven techniques")
    assert topics.count("<section ") == topics.count("*Applies:*") == 7
    assert 'role: "tab"' in SCRIPT
    assert "ArrowRight" in SCRIPT


def test_the_burst_is_a_run_of_this_engine() -> None:
    """Item 11: every token is computed once, blocks are held by one request each, and reservations
    waste more than blocks."""
    burst = data("burst")
    size, requests = burst["block_size"], burst["requests"]
    done = {i + 1: 0 for i in range(len(requests))}
    for step in burst["steps"]:
        for request, before, new in step["rows"]:
            assert before == done[request] or (before % size == 0 and not done[request])
            done[request] = before + new
        held = [block for blocks in step["blocks"].values() for block in blocks]
        assert len(held) == len(set(held)) <= burst["blocks"]
        for request, before, new in step["rows"]:
            if str(request) in step["blocks"]:
                assert len(step["blocks"][str(request)]) == -(-(before + new) // size)
    assert list(done.values()) == [r["prompt"] + r["output"] - 1 for r in requests]
    found = run_node(
        GUIDE,
        f"(() => {{ const d = {json.dumps(burst)}; const c = burst.contiguous(d); return"
        " {room: c.room, steps: c.steps.length, left: c.steps[12].held.reduce((s, [, t]) =>"
        " s + d.reserved - t, 0), right: burst.paged(d, d.steps[12]).wasted}; })()",
        "burst",
    )
    assert found["room"] == burst["blocks"] * size // burst["reserved"]
    assert found["steps"] > len(burst["steps"])
    assert found["left"] > 10 * found["right"]


def test_static_and_continuous_do_the_same_work() -> None:
    """Item 12."""
    found = data("batching")
    for kind in ("static", "continuous"):
        made = sum(len(step["rows"]) for step in found[kind])
        assert made == sum(found["answers"])
        assert max(len(step["rows"]) for step in found[kind]) == found["slots"]
    assert len(found["static"]) > 1.5 * len(found["continuous"])


def test_chunks_stay_within_the_budget() -> None:
    """Item 13: A's 256 tokens in four steps of 64, while B and C decode."""
    found = data("chunks")
    a = next(int(key) for key, name in found["names"].items() if name == "A")
    chunks = [
        (new, len(step["rows"]))
        for step in found["steps"]
        for request, before, new in step["rows"]
        if request == a and before < 256
    ]
    assert chunks == [(64, 3)] * 4
    assert all(sum(row[2] for row in step["rows"]) <= 128 for step in found["steps"])


def test_the_quick_brown_fox() -> None:
    """Item 14."""
    life = data("life")
    assert [token["text"] for token in life["prompt"]] == ["The", " quick", " brown", " fox"]
    spans = [tuple(step["rows"][0][1:]) for step in life["steps"]]
    assert spans == [(0, 4), *((4 + i, 1) for i in range(len(life["output"]) - 1))]
    assert "".join(token["text"] for token in life["output"]) == life["answer"]


def test_the_code_is_what_runs() -> None:
    """Items 15, 16 and 35: lines as they are in the source, and the order of a step."""
    found = data("code")
    for part in found.values():
        lines = (ROOT / part["file"]).read_text().splitlines()
        at = part["first"] - 1
        source = [line.removeprefix("    ") for line in lines[at : at + len(part["lines"])]]
        assert part["lines"] == source
        assert part["file"] in PAGES["step.md"]
    step = "\n".join(found["step"]["lines"])
    order = ("scheduler.schedule()", "executor.submit(", "while_waiting()", "handle.sample(",
             "constrained.masks(", "scheduler.commit(")  # fmt: skip
    at = [step.index(word) for word in order]
    assert at == sorted(at)
    called = [line for _, line in found["step"]["calls"]]
    assert called == sorted(called)
    assert len(rows(section("step.md", "Components"))) >= 6


def test_processes() -> None:
    """Items 17 and 150 of the checklist."""
    many = run_node(GUIDE, "topology.processes({tp: 2, pp: 1, dp: 4, servers: 0})", "topology")
    counted = (many["servers"], many["cores"], many["workers"], many["coordinator"])
    assert counted == (4, 4, 8, 1)


def test_processes_are_those_that_start(server: Server) -> None:
    """Launcher, API servers, engine core."""
    one, two = (
        run_node(
            GUIDE, f"topology.processes({{tp: 1, pp: 1, dp: 1, servers: {n}}}).total", "topology"
        )
        for n in (0, 2)
    )
    assert len(server.pids()) == one
    with serve(*SMALL, "--api-server-count", "2") as other:
        assert len(other.pids()) == two


def test_five_strategies() -> None:
    """Items 19 and 31."""
    text = section("parallel.md", "Five strategies")
    sections = re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.S)
    assert [name for name, _ in sections] == ["tp", "pp", "dp", "ep", "cp"]
    for _, body in sections:
        for field in ("*Topology:*", "*Fit:*", "*Tradeoff:*", "*Flag:*"):
            assert " ".join(body.split()).count(field) == 1
        assert flags_exist(body)
