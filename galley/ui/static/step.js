// Inside a step: what each operation of the recorded program takes, beside what it must.
import { bytes, html, json, number, percent, Problem, seconds, useEffect, useState } from "./common.js";

const rate = (value, unit) => (value ? `${number(value / 1e9, value < 1e10 ? 1 : 0)} ${unit}` : "–");

function Share({ value }) {
  return html`<span class="share" aria-hidden="true"><span
    style=${{ width: `${Math.min(value, 1) * 100}%` }}></span></span>${percent(value)}`;
}

function Operations({ report }) {
  const total = report.seconds.reduce((a, b) => a + b, 0);
  return html`<div class="scroll tall" tabindex="0" role="group" aria-label="Operations"><table>
    <thead><tr><th scope="col">operation</th><th scope="col" class="n">count</th>
      <th scope="col" class="n">time</th><th scope="col">of the step</th>
      <th scope="col" class="n">must read</th><th scope="col" class="n">reads</th>
      <th scope="col" class="n">computes</th><th scope="col">of the roofline</th></tr></thead>
    <tbody>${report.operations.map(one => html`<tr key=${one.label}><td>${one.label}</td>
      <td class="n">${one.count}</td><td class="n">${seconds(one.seconds)}</td>
      <td><${Share} value=${one.seconds / total} /></td>
      <td class="n">${one.bytes ? bytes(one.bytes) : "–"}</td>
      <td class="n">${rate(one.bytes / one.seconds, "GB/s")}</td>
      <td class="n">${rate(one.operations / one.seconds, "Gop/s")}</td>
      <td>${one.least === null ? html`<small>–</small>`
        : html`<${Share} value=${one.least / one.seconds} />`}</td></tr>`)}</tbody></table></div>`;
}

function Program({ report }) {
  const text = report.lines.map((line, i) =>
    `${seconds(report.seconds[i]).padStart(9)}  ${line}`).join("\n");
  return html`<details><summary>The program, operation by operation</summary>
    <pre class="scroll tall" tabindex="0" role="group" aria-label="Program">${text}</pre></details>`;
}

export default function Step() {
  const [report, setReport] = useState(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const measure = async limits => {
    setBusy(true);
    try {
      setReport(await json(`/ui/api/operations?limits=${limits ? 1 : 0}`));
      setError(null);
    } catch (failure) {
      setError(failure);
    }
    setBusy(false);
  };
  useEffect(() => { measure(false); }, []);
  const limits = report?.limits;
  return html`<h1>Inside a step</h1>
    <${Problem} error=${error} />
    <section class="panel" aria-labelledby="operations">
      <div class="bar"><h2 id="operations" class="grow">Operations of the mean step</h2>
        <button type="button" class="primary" disabled=${busy} onClick=${() => measure(false)}>
          ${busy ? "Timing …" : "Time the next steps"}</button>
        <button type="button" disabled=${busy} onClick=${() => measure(true)}>
          Measure this machine</button></div>
      <p role="status">${!report ? "Timing the next steps …"
        : !report.steps ? "There was no step within two seconds: send a request, then time again."
        : `Mean of ${report.steps} steps: ${number(report.rows, 1)} rows, ` +
          `${number(report.tokens, 1)} tokens, ` +
          `${seconds(report.seconds.reduce((a, b) => a + b, 0))} in operations.`}</p>
      ${report?.steps > 0 && html`
        <${Operations} report=${report} />
        <p class="legend">${report.why ? `Bytes are not known: ${report.why}.`
          : "Times are measured. Bytes and operations are computed from shapes and formats: each " +
            "weight is read once a step, and what stays in the caches is not counted."}
          ${limits ? ` Limits of ${limits.threads} threads, measured by loops in registers and from ` +
            `memory: ${number(limits.read / 1e9, 1)} GB/s; ${Object.entries(limits.peak).map(
              ([name, peak]) => `${name} ${number(peak / 1e9)} Gop/s`).join(", ")}.`
            : " The roofline needs this machine's limits: half a second of all cores."}
          ${limits ? " More than 100 % says that other programs computed while they were measured, " +
            "or that data were still in the caches." : ""}</p>
        <${Program} report=${report} />`}
    </section>`;
}
