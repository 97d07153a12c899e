// The playground: conversations side by side, each with its own settings.
import {
  Copy, events, html, json, key, number, Problem, request, ROOT, seconds, useEffect, useRef,
  useState,
} from "./common.js";

/** Numeric settings: field → label, step, least, most. Empty ones are left to the server. */
const NUMBERS = {
  temperature: ["Temperature", 0.1, 0, 2],
  top_p: ["Top p", 0.05, 0, 1],
  top_k: ["Top k", 1, -1, null],
  min_p: ["Min p", 0.05, 0, 1],
  max_tokens: ["Most tokens", 1, 1, null],
  seed: ["Seed", 1, null, null],
};
const MOST_PANES = 4;
/** Chances below which a token is marked, less and less likely. */
const LIKELY = [0.9, 0.5, 0.1];

let numbered = 0;
const newPane = model => ({
  id: ++numbered, model, system: "", stop: "", tools: "", logprobs: false, values: {},
  messages: [], error: null, busy: null,
});

/** The body of the request that a pane would send. Throws Error for tools that are no JSON. */
function bodyOf(pane, messages) {
  const body = { model: pane.model, messages: messages.map(apiMessage) };
  if (pane.system) body.messages.unshift({ role: "system", content: pane.system });
  for (const name of Object.keys(NUMBERS)) {
    if (pane.values[name] !== undefined) body[name] = pane.values[name];
  }
  const stop = pane.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (pane.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (pane.tools.trim()) {
    try { body.tools = JSON.parse(pane.tools); } catch (error) {
      throw new Error(`Tools must be a JSON array: ${error.message}`);
    }
  }
  return body;
}

function apiMessage({ role, content, calls }) {
  const message = { role, content };
  if (calls?.length) {
    message.tool_calls = calls.map(call => ({
      id: call.id, type: "function", function: { name: call.name, arguments: call.arguments },
    }));
  }
  return message;
}

/** Adds what an event of a stream brings to the answer. */
function extend(answer, event) {
  if (event.error) throw new Error(event.error.message);
  const choice = event.choices?.[0], delta = choice?.delta ?? {};
  if (event.usage) answer.usage = event.usage;
  if (!choice) return;
  const reasoning = delta.reasoning ?? delta.reasoning_content;
  if (reasoning) answer.reasoning += reasoning;
  if (delta.content) answer.content += delta.content;
  for (const call of delta.tool_calls ?? []) {
    const known = answer.calls[call.index] ??= { id: "", name: "", arguments: "" };
    if (call.id) known.id = call.id;
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
  answer.tokens.push(...choice.logprobs?.content ?? []);
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  if (answer.first === null && (delta.content || reasoning || delta.tool_calls)) {
    answer.first = performance.now();
  }
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

function curlOf(body) {
  const guard = key.get() ? ' \\\n  -H "Authorization: Bearer $API_KEY"' : "";
  return `curl ${ROOT}/v1/chat/completions \\\n  -H "Content-Type: application/json"${guard} \\\n` +
    `  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

const python = value => value === null ? "None" : value === true ? "True"
  : value === false ? "False"
  : Array.isArray(value) ? `[${value.map(python).join(", ")}]`
  : typeof value === "object"
    ? `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`).join(", ")}}`
    : JSON.stringify(value);

function pythonOf(body) {
  const extra = Object.entries(body).filter(([name]) => name === "top_k" || name === "min_p");
  const own = Object.entries(body).filter(([name]) => name !== "top_k" && name !== "min_p");
  const lines = own.map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
  const rest = extra.length ? `    extra_body=${python(Object.fromEntries(extra))},\n` : "";
  const secret = key.get() ? 'os.environ["API_KEY"]' : '"none"';
  return `${key.get() ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url="${ROOT}/v1", api_key=${secret})\n` +
    `answer = client.chat.completions.create(\n${lines}${rest})\nprint(answer.choices[0].message.content)\n`;
}

/** Tokens of an answer, the unlikely ones marked. One is chosen: its alternatives are listed. */
function Tokens({ tokens }) {
  const [chosen, setChosen] = useState(null);
  const move = event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    setChosen(Math.min(Math.max((chosen ?? -1) + by, 0), tokens.length - 1));
  };
  const shown = tokens[chosen];
  const chance = logprob => `${number(Math.exp(logprob) * 100, 1)} %`;
  return html`<div>
    <div tabindex="0" role="group" onKeyDown=${move}
      aria-label="Tokens of the answer: arrow keys choose one">${tokens.map((token, i) => {
        const level = LIKELY.filter(bound => Math.exp(token.logprob) < bound).length;
        return html`<span class=${`token p${level}${i === chosen ? " chosen" : ""}`}
          onPointerEnter=${() => setChosen(i)}>${token.token}</span>`;
      })}</div>
    <div class="alternatives" aria-live="polite">${shown
      ? html`<table><thead><tr><th scope="col">token</th><th scope="col" class="n">chance</th>
          <th scope="col" class="n">logprob</th></tr></thead>
          <tbody>${[shown, ...shown.top_logprobs.filter(one => one.token !== shown.token)].map(one =>
            html`<tr><td><code>${JSON.stringify(one.token)}</code>${one === shown ? " (this one)" : ""}</td>
              <td class="n">${chance(one.logprob)}</td><td class="n">${number(one.logprob, 3)}</td></tr>`)}
          </tbody></table>`
      : html`<small>Point at a token, or use the arrow keys, to see what else was likely.</small>`}
    </div></div>`;
}

function Message({ message }) {
  const { role, content, reasoning, calls, tokens, usage, finish } = message;
  const speed = message.first && message.end && usage?.completion_tokens > 1
    ? (usage.completion_tokens - 1) / ((message.end - message.first) / 1000) : null;
  return html`<div class=${`message ${role}`}>
    <h3>${role === "user" ? "You" : "Answer"}</h3>
    ${reasoning && html`<details><summary>Reasoning</summary><div class="message">${reasoning}</div></details>`}
    ${tokens?.length && !reasoning && !calls.length ? html`<${Tokens} tokens=${tokens} />` : content}
    ${calls?.filter(Boolean).map(call => html`<details><summary>Call of ${call.name}</summary>
      <pre>${call.arguments}</pre></details>`)}
    ${message.end && html`<div><small>${[
      finish && `end: ${finish}`,
      usage && `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`,
      message.first && `first after ${seconds((message.first - message.begin) / 1000)}`,
      speed && `${number(speed, 1)} tok/s`,
    ].filter(Boolean).join(" · ")}</small></div>`}
  </div>`;
}

function Settings({ pane, models, change }) {
  const set = (name, value) => change({ [name]: value });
  const setNumber = (name, event) => {
    const { [name]: _, ...others } = pane.values;
    const value = event.target.valueAsNumber;
    change({ values: Number.isNaN(value) ? others : { ...others, [name]: value } });
  };
  return html`<details><summary>Settings</summary><div class="settings">
    ${models.length > 1 && html`<label>Model <select value=${pane.model}
      onChange=${e => set("model", e.target.value)}>
      ${models.map(model => html`<option value=${model}>${model}</option>`)}</select></label>`}
    ${Object.entries(NUMBERS).map(([name, [label, step, least, most]]) => html`<label>${label}
      <input type="number" step=${step} min=${least} max=${most} placeholder="default"
        value=${pane.values[name] ?? ""} onInput=${e => setNumber(name, e)} /></label>`)}
    <label class="check"><input type="checkbox" checked=${pane.logprobs}
      onChange=${e => set("logprobs", e.target.checked)} /> Logprobs</label>
    <label class="wide">System prompt <textarea rows="2" value=${pane.system}
      onInput=${e => set("system", e.target.value)}></textarea></label>
    <label class="wide">Stop strings, one a line <textarea rows="1" value=${pane.stop}
      onInput=${e => set("stop", e.target.value)}></textarea></label>
    <label class="wide">Tools, a JSON array as the API takes it <textarea rows="2" class="mono"
      value=${pane.tools} onInput=${e => set("tools", e.target.value)}></textarea></label>
  </div></details>`;
}

function Pane({ pane, models, number: place, change, onAgain, onRemove }) {
  const copied = make => () => {
    try { return make(bodyOf(pane, pane.messages.filter(m => m.role === "user" || m.end))); } catch (error) {
      return error.message;
    }
  };
  const answered = pane.messages.length > 0 && !pane.busy;
  return html`<section class="panel pane" aria-label=${`Conversation ${place}`}>
    <${Settings} pane=${pane} models=${models} change=${change} />
    <div class="messages">${!pane.messages.length && html`<p class="muted">Answers of ${pane.model}
      ${" "}appear here.</p>`}${pane.messages.map(message => html`<${Message} message=${message} />`)}</div>
    <${Problem} error=${pane.error} />
    <div class="bar">
      ${pane.busy && html`<button type="button" class="primary"
        onClick=${() => pane.busy.abort()}>Stop</button>`}
      <button type="button" disabled=${!answered} onClick=${onAgain}>Regenerate</button>
      <${Copy} label="Copy as curl" text=${copied(curlOf)} />
      <${Copy} label="Copy as Python" text=${copied(pythonOf)} />
      <button type="button" disabled=${!answered}
        onClick=${() => change({ messages: [], error: null })}>Clear</button>
      ${onRemove && html`<button type="button" onClick=${onRemove}>Remove</button>`}
    </div>
  </section>`;
}

export default function Chat({ facts }) {
  const [models, setModels] = useState(facts.models);
  const [panes, setPanes] = useState([newPane(facts.models[0])]);
  const [text, setText] = useState("");
  const [error, setError] = useState(null);
  const latest = useRef(panes);
  latest.current = panes;
  useEffect(() => {
    json("/v1/models").then(found => setModels(found.data.map(model => model.id)), setError);
    return () => latest.current.forEach(pane => pane.busy?.abort());
  }, []);
  const change = (id, changes) =>
    setPanes(all => all.map(pane => (pane.id === id ? { ...pane, ...changes } : pane)));

  async function send(pane, messages) {
    const stop = new AbortController();
    const answer = {
      role: "assistant", content: "", reasoning: "", calls: [], tokens: [], finish: null,
      usage: null, begin: performance.now(), first: null, end: null,
    };
    let drawn = 0;
    const draw = (changes = {}) =>
      change(pane.id, { messages: [...messages, { ...answer }], ...changes });
    try {
      const body = { ...bodyOf(pane, messages), stream: true, stream_options: { include_usage: true } };
      draw({ busy: stop, error: null });
      const reply = await request("/v1/chat/completions", {
        method: "POST", body: JSON.stringify(body), signal: stop.signal,
      });
      for await (const event of events(reply)) {
        extend(answer, event);
        if (performance.now() - drawn > 40) {
          drawn = performance.now();
          draw();
        }
      }
      answer.end = performance.now();
      draw({ busy: null });
    } catch (failure) {
      answer.end = performance.now();
      if (stop.signal.aborted) {
        answer.finish = "stopped";
        draw({ busy: null });
      } else if (answer.content || answer.reasoning) draw({ busy: null, error: failure });
      else change(pane.id, { busy: null, error: failure, messages });
    }
  }

  const submit = event => {
    event.preventDefault();
    if (!text.trim() || panes.some(pane => pane.busy)) return;
    for (const pane of panes) send(pane, [...pane.messages, { role: "user", content: text }]);
    setText("");
  };
  const again = pane => {
    const last = pane.messages.findLastIndex(message => message.role === "user");
    send(pane, pane.messages.slice(0, last + 1));
  };
  const typed = event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  };
  const add = () => {
    const { model, system, stop, tools, logprobs, values } = panes.at(-1);
    setPanes([...panes, { ...newPane(model), system, stop, tools, logprobs, values }]);
  };
  const busy = panes.some(pane => pane.busy);
  return html`
    <h1 class="visually-hidden">Chat</h1>
    <${Problem} error=${error} />
    <div class="panes">${panes.map((pane, i) => html`<${Pane} key=${pane.id} pane=${pane} number=${i + 1}
      models=${models} change=${changes => change(pane.id, changes)} onAgain=${() => again(pane)}
      onRemove=${panes.length > 1 ? () => {
        pane.busy?.abort();
        setPanes(panes.filter(other => other !== pane));
      } : null} />`)}</div>
    <form class="composer" onSubmit=${submit}>
      <label class="visually-hidden" for="message">Message</label>
      <textarea id="message" rows="2" value=${text} onInput=${e => setText(e.target.value)}
        onKeyDown=${typed} placeholder=${panes.length > 1 ? "Ask all conversations" : "Ask something"}></textarea>
      <div class="bar"><button class="primary" disabled=${busy || !text.trim()}>Send</button>
        <button type="button" disabled=${panes.length >= MOST_PANES} onClick=${add}>
          Add a conversation</button>
        <small>Enter sends, Shift+Enter starts a line.</small></div>
    </form>`;
}
