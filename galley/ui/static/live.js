// The live view: what the engine does now, or did a moment ago.
import {
  bytes, clock, events, html, number, percent, Problem, quantile, request, save, seconds,
  useEffect, useMemo, useRef, useState,
} from "./common.js";
import { Batches, Chart, colourOf, Life, ownersOf, Pool } from "./drawing.js";
import { bitsOf, decodes, kindsOf, nameOf, Recording } from "./recording.js";

/** Seconds over which rates and latencies are taken. */
const WINDOW = 10;
const LISTED = 200;

/** Receives frames until `signal` aborts; connects again after a break. */
async function watch(recording, signal, onState) {
  while (!signal.aborted) {
    try {
      const reply = await request("/ui/api/live", { signal });
      onState(null);
      for await (const frame of events(reply)) recording.add(frame);
      if (!signal.aborted) onState(new Error("The server has ended the stream."));
    } catch (error) {
      if (signal.aborted) return;
      onState(error);
      if (error.status) return;
    }
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
}

function Tile({ name, value, note }) {
  return html`<div class="tile"><dt>${name}</dt><dd>${value}</dd>
    ${note && html`<dd class="note">${note}</dd>`}</div>`;
}

function Tiles({ recording, view, t }) {
  const figures = recording.figures(t, WINDOW);
  const { counters } = view;
  const usable = view.limits.num_blocks - view.blocks_reserved;
  const waiting = Object.values(view.num_waiting).reduce((a, b) => a + b, 0);
  return html`<dl class="tiles">
    <${Tile} name="Output" value=${`${number(figures.output, figures.output < 10 ? 1 : 0)} tok/s`} />
    <${Tile} name="Prompts" value=${`${number(figures.prompt)} tok/s`} />
    <${Tile} name="First token" value=${seconds(quantile(figures.ttft, 0.5))}
      note=${figures.ttft.length ? `median of ${figures.ttft.length}` : "none lately"} />
    <${Tile} name="Between tokens" value=${seconds(quantile(figures.itl, 0.5))}
      note=${figures.itl.length ? `p99 ${seconds(quantile(figures.itl, 0.99))}` : "none lately"} />
    <${Tile} name="Running" value=${`${view.running.length} / ${view.limits.max_num_seqs}`} />
    <${Tile} name="Waiting" value=${waiting} />
    <${Tile} name="KV cache" value=${percent(view.blocks_used / Math.max(usable, 1))}
      note=${`${number(view.blocks_used)} of ${number(usable)} blocks`} />
    <${Tile} name="Prefix hits" value=${percent(counters.prefix_queries
      ? counters.prefix_hits / counters.prefix_queries : null)} note="since start" />
    <${Tile} name="Memory" value=${bytes(view.memory.resident)}
      note=${view.memory.weights ? `weights ${bytes(view.memory.weights)}` : "of the engine"} />
    <${Tile} name="Preempted" value=${number(counters.preemptions)} note="since start" />
    ${figures.drafts > 0 && html`<${Tile} name="Drafts accepted"
      value=${percent(figures.accepted / figures.drafts)} note=${`of ${number(figures.drafts)}`} />`}
  </dl>`;
}

function PoolPanel({ view, chosen, onChoose }) {
  const [block, setBlock] = useState(null);
  const owners = useMemo(() => ownersOf(view), [view]);
  const shared = [...owners.values()].filter(held => held.length > 1).length;
  const held = block === null ? [] : owners.get(block) ?? [];
  const cached = useMemo(() => bitsOf(view.cached), [view]);
  const numCached = useMemo(() => {
    let n = 0;
    for (let i = 1; i <= view.limits.num_blocks; i++) n += cached(i);
    return n;
  }, [view]);
  const size = view.limits.block_size;
  return html`<section class="panel" aria-labelledby="pool">
    <h2 id="pool">Pool of blocks</h2>
    <${Pool} view=${view} chosen=${chosen} onBlock=${setBlock} />
    <p class="legend">
      <span>${number(view.blocks_used)} in use, coloured by request</span>
      <span><span class="chip shared"></span>${number(shared)} of them shared</span>
      <span><span class="chip cached"></span>${number(numCached)} free, kept as prefixes</span>
      <span><span class="chip free"></span>free</span>
      <span>${number(size)} tokens a block${view.limits.groups.length > 1
        ? `, groups: ${view.limits.groups.join(", ")}` : ""}</span>
      ${view.blocks_reserved > 0 && html`<span class="state warn">${view.blocks_reserved} withheld:
        memory is short</span>`}
    </p>
    <p class="bar"><label>Block <input type="number" min="1" max=${view.limits.num_blocks}
        value=${block ?? ""} onInput=${e => setBlock(e.target.valueAsNumber || null)} /></label>
      <span class="told muted">${block === null ? "Point at a block, or type its number."
        : held.length ? html`held by ${held.map(handle => html`<button type="button" class="link"
            onClick=${() => onChoose(handle)}>${nameOf(handle)}</button> `)}`
        : cached(block) ? "free; its content is kept for requests with the same prefix"
        : "free"}</span></p>
  </section>`;
}

function BatchPanel({ steps }) {
  const [chosen, setChosen] = useState(null);
  const last = steps.at(-1);
  const step = chosen === null ? last : steps.find(one => one.number === chosen) ?? last;
  const kinds = step && kindsOf(step);
  return html`<section class="panel" aria-labelledby="batch">
    <h2 id="batch">Batch of each step</h2>
    <${Batches} steps=${steps} chosen=${chosen} onStep=${setChosen} />
    <p class="legend">
      <span><span class="chip prefill"></span>prompt chunks</span>
      <span><span class="chip decode"></span>decode</span>
      <span><span class="chip draft"></span>drafts</span>
      ${step && html`<span>budget ${number(step.budget)} tokens a step</span>`}
    </p>
    ${step && html`<div class="bar">
      <label>Step <input type="number" min=${steps[0].number} max=${last.number}
        value=${step.number} onInput=${e => setChosen(e.target.valueAsNumber || null)} /></label>
      ${chosen !== null && html`<button type="button" onClick=${() => setChosen(null)}>
        Newest</button>`}
      <span class="told muted">${number(step.tokens)} tokens, ${percent(step.tokens / step.budget)} of the budget: ${[
        kinds.prefill && `${number(kinds.prefill)} of ${kinds.prompts} prompts`,
        kinds.decode && `${kinds.decode} decoding`, kinds.draft && `${kinds.draft} drafts`,
      ].filter(Boolean).join(", ")}; ${seconds(step.end - step.begin)}
        ${" "}(schedule ${seconds(step.schedule)}, execute ${seconds(step.execute)},
        commit ${seconds(step.commit)})</span>
    </div>`}
  </section>`;
}

function Requests({ view, recording, chosen, onChoose }) {
  const listed = view.running.slice(0, LISTED);
  return html`<section class="panel" aria-labelledby="requests">
    <h2 id="requests">Running requests</h2>
    ${listed.length ? html`<div class="scroll" tabindex="0" role="group" aria-labelledby="requests"><table>
      <thead><tr><th scope="col">request</th><th scope="col" class="n">prompt</th>
        <th scope="col" class="n">cached</th><th scope="col" class="n">output</th>
        <th scope="col" class="n">blocks</th><th scope="col">state</th></tr></thead>
      <tbody>${listed.map(one => {
        const cached = recording.requests.get(one.handle)?.admissions.at(-1)?.cached;
        const left = one.num_tokens - one.num_computed;
        return html`<tr key=${one.handle} class=${one.handle === chosen ? "chosen" : ""}>
          <td><span class="chip" style=${{ background: colourOf(one.handle) }}></span>
            <button type="button" class="link" aria-pressed=${one.handle === chosen}
              onClick=${() => onChoose(one.handle === chosen ? null : one.handle)}>
              ${nameOf(one.handle)}</button></td>
          <td class="n">${number(one.num_prompt)}</td><td class="n">${number(cached)}</td>
          <td class="n">${number(one.num_tokens - one.num_prompt)}</td>
          <td class="n">${number(one.blocks.flat().filter(Boolean).length)}</td>
          <td>${left > 1 ? `prefill, ${number(left)} to go` : "decode"}</td></tr>`;
      })}</tbody></table></div>`
      : html`<p class="muted">No request is running.</p>`}
  </section>`;
}

function Queue({ view }) {
  const reasons = Object.entries(view.num_waiting);
  return html`<section class="panel" aria-labelledby="queue">
    <h2 id="queue">Queue</h2>
    ${reasons.length ? html`
      <p>${reasons.map(([reason, n]) => html`<span class="state warn">${reason}: ${n}</span> `)}</p>
      <div class="scroll" tabindex="0" role="group" aria-labelledby="queue"><table><thead><tr><th scope="col">request</th>
        <th scope="col">waits for</th><th scope="col" class="n">tokens</th>
        <th scope="col" class="n">waiting</th></tr></thead>
      <tbody>${view.waiting.map(one => html`<tr key=${one.handle}><td>${nameOf(one.handle)}</td>
        <td>${one.reason}${one.num_preemptions ? ", preempted" : ""}</td>
        <td class="n">${number(one.num_tokens)}</td>
        <td class="n">${seconds(view.now - one.queued)}</td></tr>`)}</tbody></table></div>`
      : html`<p class="muted">${view.paused ? "Scheduling is paused." : "No request is waiting."}</p>`}
  </section>`;
}

function LifePanel({ recording, view, handle, t, onClose }) {
  const life = recording.requests.get(handle);
  if (!life) return null;
  const now = view.running.find(one => one.handle === handle);
  const marks = life.marks.filter(mark => mark.end <= t);
  const chunks = marks.filter(mark => !decodes(mark));
  const since = life.queued ?? marks[0]?.begin;
  const after = at => at == null || at > t ? "–" : `+${seconds(at - since)}`;
  const admitted = life.admissions[0];
  return html`<section class="panel" aria-labelledby="life">
    <div class="bar"><h2 id="life" class="grow">
      <span class="chip" style=${{ background: colourOf(handle) }}></span>Life of
      ${" "}${nameOf(handle)}</h2>
      <button type="button" onClick=${onClose}>Close</button></div>
    <${Life} life=${life} until=${t} />
    <p class="legend"><span>${clock(since)}</span><span><span class="chip prefill"></span>prefill</span>
      <span><span class="chip decode"></span>decode</span></p>
    <dl class="life">
      <dt>Request id</dt><dd class="mono">${life.id || "ended before this view"}</dd>
      <dt>Arrived</dt><dd>${life.queued === null ? "before this view" : clock(life.queued)}</dd>
      <dt>Admitted</dt><dd>${admitted ? after(admitted.t) : "–"}${admitted
        ? `, ${number(admitted.cached)} tokens from the prefix cache` : ""}</dd>
      <dt>Prompt</dt><dd>${number(life.prompt)} tokens${chunks.length
        ? `, ${number(chunks.reduce((sum, mark) => sum + mark.tokens, 0))} computed in ${chunks.length} ${chunks.length > 1 ? "chunks" : "chunk"}`
        : ""}</dd>
      <dt>First token</dt><dd>${after(life.first)}</dd>
      <dt>Steps</dt><dd>${number(marks.length)} seen</dd>
      ${life.admissions.some(one => one.resumed) && html`<dt>Resumed</dt>
        <dd>${life.admissions.filter(one => one.resumed).length} times after preemption</dd>`}
      ${life.replays > 0 && html`<dt>Replayed</dt><dd>${life.replays} times after an engine's death</dd>`}
      <dt>Last token</dt><dd>${life.ended && life.ended.t <= t
        ? `${after(life.ended.t)} (${life.ended.reason})` : "still to come"}</dd>
    </dl>
    ${now && html`<h3>Its blocks, in order of position</h3>
      ${now.blocks.map((ids, g) => html`<p class="mono" data-group=${g}>${view.limits.groups.length > 1
        ? `${view.limits.groups[g]}: ` : ""}${ids.join(" ")}</p>`)}`}
  </section>`;
}

/** Values of each second before t. */
function perSecond(recording, t) {
  const from = Math.ceil(Math.max(recording.first, t - 120));
  const times = [], output = [], prompt = [], used = [], running = [], waiting = [];
  let i = Math.max(recording.stepAt(from), 0), frame = 0;
  for (let second = from; second < t; second++) {
    let out = 0, prompts = 0;
    for (; i < recording.steps.length && recording.steps[i].end <= second + 1; i++) {
      if (recording.steps[i].end <= second) continue;
      out += recording.steps[i].output;
      prompts += kindsOf(recording.steps[i]).prefill;
    }
    while (recording.frames[frame + 1]?.now <= second + 1) frame++;
    const view = recording.frames[frame]?.engines?.[0];
    times.push(second);
    output.push(out);
    prompt.push(prompts);
    used.push(view ? (100 * view.blocks_used) / view.limits.num_blocks : null);
    running.push(view ? view.running.length : null);
    waiting.push(view ? Object.values(view.num_waiting).reduce((a, b) => a + b, 0) : null);
  }
  return { times, output, prompt, used, running, waiting };
}

function Charts({ recording, t }) {
  const second = Math.floor(t);
  const curves = useMemo(() => perSecond(recording, second), [recording, second]);
  const { times, output, prompt, used, running, waiting } = curves;
  const sets = useMemo(() => [[times, output, prompt], [times, used], [times, running, waiting]], [curves]);
  return html`<section class="panel" aria-labelledby="charts">
    <h2 id="charts">The last two minutes</h2>
    <h3>Tokens per second: <span class="chip decode"></span>output
      ${" "}<span class="chip prefill"></span>prompts</h3>
    <${Chart} data=${sets[0]} label="Tokens per second"
      series=${[{ colour: "--decode" }, { colour: "--prefill" }]} />
    <h3>KV cache in use, %</h3>
    <${Chart} data=${sets[1]} label="KV cache in use, percent" series=${[{ colour: "--decode" }]} />
    <h3>Requests: <span class="chip decode"></span>running
      ${" "}<span class="chip prefill"></span>waiting</h3>
    <${Chart} data=${sets[2]} label="Requests"
      series=${[{ colour: "--decode" }, { colour: "--prefill" }]} />
  </section>`;
}

function Events({ recording, t }) {
  const told = recording.events.filter(event => event.t <= t).slice(-50).reverse();
  return html`<section class="panel" aria-labelledby="events">
    <h2 id="events">Events</h2>
    <ul class="events" aria-live="polite">
      ${told.length ? told.map(event => html`<li><time>${clock(event.t)}</time>
        <span class=${event.tone}>${event.text}</span></li>`)
        : html`<li class="muted">Deaths of the engine, replays and preemptions appear here.</li>`}
    </ul></section>`;
}

export default function Live({ facts }) {
  const store = useRef(null);
  store.current ??= new Recording();
  const [, setTick] = useState(0);
  const [problem, setProblem] = useState(null);
  const [source, setSource] = useState(facts.recording ? "file" : "live");
  // The time that is shown; null: the newest.
  const [at, setAt] = useState(null);
  const [chosen, setChosen] = useState(null);
  const file = useRef();
  const show = text => {
    store.current = Recording.read(text);
    setSource("file");
    setAt(store.current.first);
    setProblem(null);
  };
  useEffect(() => {
    if (facts.recording) {
      request("/ui/api/recording").then(reply => reply.text()).then(show).catch(setProblem);
    }
  }, []);
  useEffect(() => {
    if (source !== "live") return undefined;
    const stop = new AbortController();
    watch(store.current, stop.signal, setProblem);
    return () => stop.abort();
  }, [source]);
  useEffect(() => {
    const timer = setInterval(() => setTick(n => n + 1), 250);
    return () => clearInterval(timer);
  }, []);

  const recording = store.current;
  const frames = recording.frames;
  const t = at ?? recording.last;
  let index = frames.length - 1;
  if (at !== null) while (index > 0 && frames[index].now > at) index--;
  // While the engine is down, its last state is shown.
  let known = index;
  while (known >= 0 && !frames[known].engines) known--;
  const view = frames[known]?.engines[0];
  const down = frames[index]?.down;
  const steps = recording.steps.slice(Math.max(recording.stepAt(t) - 120, 0), recording.stepAt(t) + 1);

  const open = async event => {
    const [picked] = event.target.files;
    if (picked) picked.text().then(show).catch(setProblem);
  };
  const back = () => {
    store.current = new Recording();
    setAt(null);
    setSource("live");
  };
  const move = event => setAt(frames[event.target.valueAsNumber]?.now ?? null);
  const stamp = () => new Date(recording.last * 1000).toISOString().slice(0, 19).replace(/:/g, "");
  return html`
    <h1 class="visually-hidden">Live</h1>
    <${Problem} error=${problem} />
    <div class="bar panel">
      <span class=${`state ${down ? "bad" : at !== null || source === "file" ? "" : "good"}`}
        role="status">${down ? "engine down" : source === "file" ? "recording"
          : at !== null ? "paused" : view ? "live" : "connecting"}</span>
      ${source === "live" && html`<button type="button"
        onClick=${() => setAt(at === null ? recording.last : null)}>
        ${at === null ? "Pause" : "Go live"}</button>`}
      <label class="grow"><span class="visually-hidden">Time</span>
        <input type="range" class="grow" min="0" max=${Math.max(frames.length - 1, 0)} step="1"
          value=${Math.max(index, 0)} onInput=${move} style=${{ width: "100%" }}
          aria-valuetext=${view ? clock(t) : "nothing received yet"} /></label>
      <span class="mono">${view ? `${clock(t)}  −${number(recording.last - t, 1)} s` : ""}</span>
      <button type="button" disabled=${!view}
        onClick=${() => save(`galley-${stamp()}.json`, recording.file(facts))}>Save</button>
      <button type="button" onClick=${() => file.current.click()}>Open</button>
      <input ref=${file} type="file" accept=".json,application/json" hidden onChange=${open}
        aria-label="Recording" />
      ${source === "file" && !facts.recording && html`<button type="button" onClick=${back}>
        Back to live</button>`}
    </div>
    ${view && html`
      <${Tiles} recording=${recording} view=${view} t=${t} />
      <div class="columns">
        <div class="stack">
          <${PoolPanel} view=${view} chosen=${chosen} onChoose=${setChosen} />
          <${BatchPanel} steps=${steps} />
          <${Charts} recording=${recording} t=${t} />
        </div>
        <div class="stack">
          ${chosen !== null && html`<${LifePanel} recording=${recording} view=${view}
            handle=${chosen} t=${t} onClose=${() => setChosen(null)} />`}
          <${Requests} view=${view} recording=${recording} chosen=${chosen} onChoose=${setChosen} />
          <${Queue} view=${view} />
          <${Events} recording=${recording} t=${t} />
        </div>
      </div>`}`;
}
