// Operation: from a symptom to the flag, alerts, the security checklist, and the configuration.
import {
  html, json, number, percent, Problem, request, seconds, useEffect, useState,
} from "./common.js";
import { evaluate, parseMetrics, scalar } from "./promql.js";

/** Seconds between two readings of /metrics, and how long they are kept. */
const EVERY = 2;
const KEPT = 600;
const STATES = { good: "fine", warn: "look at it", bad: "change it" };

function shown(value, unit, query) {
  if (value === null) return "–";
  if (unit === "s" || /_seconds/.test(query)) return seconds(value);
  if (/_perc\b|hits_total.*queries_total/.test(query)) return percent(value);
  return number(value, value < 10 ? 2 : 0);
}

/** The value of a query, and why there is none. */
function ask(query, scrapes) {
  try {
    return { value: scalar(evaluate(query, scrapes)) };
  } catch (error) {
    return { value: null, error: error.message };
  }
}

function Symptoms({ symptoms, scrapes, settings }) {
  const now = flag => settings.find(one => one.flag === flag);
  return html`<section class="panel" aria-labelledby="symptoms">
    <h2 id="symptoms">From a symptom to the flag</h2>
    <p class="muted">Open what you see. Values are of this server, since this page was opened.</p>
    ${symptoms.map(symptom => {
      const setting = now(symptom.flag);
      return html`<details><summary>${symptom.title}</summary>
        <p>${symptom.why}</p>
        <table><thead><tr><th scope="col">metric</th><th scope="col" class="n">now</th></tr></thead>
        <tbody>${symptom.readings.map(reading => html`<tr><td>${reading.label}<br /><code>${reading.query}</code></td>
          <td class="n">${shown(ask(reading.query, scrapes).value, reading.unit, reading.query)}</td></tr>`)}
        </tbody></table>
        <p><code>${symptom.change}</code> helps${setting
          ? html`; it is now <code>${setting.value || "unset"}</code> (${setting.source})` : ""}.
          ${" "}${symptom.others}</p>
      </details>`;
    })}
  </section>`;
}

function Alerts({ alerts, scrapes }) {
  const asked = alerts.map(alert => ({ ...alert, ...ask(alert.expr, scrapes) }));
  const covered = scrapes.length > 1 ? scrapes.at(-1).t - scrapes[0].t : 0;
  return html`<section class="panel" aria-labelledby="alerts">
    <h2 id="alerts">Alerts</h2>
    <p class="muted">The conditions of <code>deploy/prometheus/alerts.yml</code>, ${covered
        ? `over the ${seconds(covered)} that this page has seen` : "once it has been read twice"}. Prometheus looks longer back, and waits as
      long as each rule says.</p>
    <table>
      <thead><tr><th scope="col">alert</th><th scope="col">now</th><th scope="col">waits</th></tr></thead>
      <tbody>${asked.map(alert => html`<tr><td>${alert.name}<br /><small>${alert.action}</small></td>
        <td>${alert.error ? html`<small>${alert.error}</small>` : alert.outside ? html`<small>needs Prometheus</small>` : alert.value !== null
          ? html`<span class="state bad">holds (${number(alert.value, 2)})</span>`
          : html`<span class="state good">quiet</span>`}</td>
        <td>${alert.for || "0s"}</td></tr>`)}</tbody></table>
  </section>`;
}

function Checks({ checks }) {
  const order = ["bad", "warn", "good"];
  const sorted = [...checks].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  return html`<section class="panel" aria-labelledby="checks">
    <h2 id="checks">Security and resilience, as it runs now</h2>
    <table><thead><tr><th scope="col">what</th><th scope="col">state</th><th scope="col">now</th>
      <th scope="col">by</th></tr></thead>
    <tbody>${sorted.map(check => html`<tr><td>${check.name}</td>
      <td><span class=${`state ${check.state}`}>${STATES[check.state]}</span></td>
      <td>${check.found}</td>
      <td>${check.by.split(", ").map(one => html`<code>${one}</code> `)}</td></tr>`)}</tbody></table>
  </section>`;
}

function Configuration({ settings }) {
  const [all, setAll] = useState(false);
  const [text, setText] = useState("");
  const wanted = text.toLowerCase();
  const listed = settings.filter(one => (all || text || one.source !== "default") &&
    `${one.flag} ${one.help}`.toLowerCase().includes(wanted));
  return html`<section class="panel" aria-labelledby="configuration">
    <h2 id="configuration">Configuration</h2>
    <div class="bar"><label>Find <input type="search" value=${text}
        onInput=${e => setText(e.target.value)} /></label>
      <label><input type="checkbox" checked=${all} onChange=${e => setAll(e.target.checked)} />
        ${" "}with defaults</label></div>
    <div class="scroll" tabindex="0" role="group" aria-labelledby="configuration"><table>
      <thead><tr><th scope="col">flag</th><th scope="col">value</th><th scope="col">from</th></tr></thead>
      <tbody>${listed.map(one => html`<tr key=${one.flag}><td><code>${one.flag}</code><br />
        <small>${one.help.replaceAll("`", "")}</small></td>
        <td><code>${one.value || "unset"}</code></td><td>${one.source === "chosen"
          ? "chosen for this machine and model" : one.source}</td></tr>`)}</tbody></table></div>
    ${!listed.length && html`<p class="muted">No flag matches.</p>`}
  </section>`;
}

export default function Operate() {
  const [found, setFound] = useState(null);
  const [scrapes, setScrapes] = useState([]);
  const [error, setError] = useState(null);
  useEffect(() => {
    Promise.all([json("/ui/api/operation"), json("/ui/operation.json")])
      .then(([server, known]) => setFound({ ...server, ...known }), setError);
    const read = async () => {
      try {
        const samples = parseMetrics(await (await request("/metrics")).text());
        const t = Date.now() / 1000;
        setScrapes(all => [...all.filter(one => one.t > t - KEPT), { t, samples }]);
      } catch (failure) {
        setError(failure);
      }
    };
    read();
    const timer = setInterval(read, EVERY * 1000);
    return () => clearInterval(timer);
  }, []);
  return html`<h1>Operate</h1><${Problem} error=${error} />
    ${found && html`<div class="checks">
      <div class="stack"><${Symptoms} symptoms=${found.symptoms} scrapes=${scrapes}
        settings=${found.settings} /><${Alerts} alerts=${found.alerts} scrapes=${scrapes} /></div>
      <div class="stack"><${Checks} checks=${found.checks} />
        <${Configuration} settings=${found.settings} /></div>
    </div>`}`;
}
