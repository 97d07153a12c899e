// What all pages share: requests with the API key, formats of numbers, small parts.
export {
  h, html, render, useState, useEffect, useLayoutEffect, useRef, useMemo,
} from "./vendor/preact-htm.js";
import { html, useState } from "./vendor/preact-htm.js";

const KEY = "galley.key";
/** The server's root: the page lies below it, at ui/. */
export const ROOT = new URL("..", document.baseURI).href.replace(/\/$/, "");

export class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

/** A request below the server's root. Throws HttpError unless it succeeds. */
export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const reply = await fetch(ROOT + path, { ...options, headers });
  if (reply.ok) return reply;
  const text = await reply.text();
  let message = text || reply.statusText;
  try { message = JSON.parse(text).error.message; } catch { /* not the API's shape */ }
  if (reply.status === 401) dispatchEvent(new Event("galley-key"));
  throw new HttpError(reply.status, message);
}

export const json = async (path, options) => (await request(path, options)).json();

/** Objects of a stream of server-sent events, until it ends. */
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      for (const line of part.split(/\r?\n/)) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
      }
    }
  }
}

export const number = (value, digits = 0) =>
  value == null || !Number.isFinite(value) ? "–"
    : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

/** Seconds in a unit that fits. */
export function seconds(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value < 0.001) return `${number(value * 1e6)} µs`;
  if (value < 1) return `${number(value * 1e3, value < 0.01 ? 2 : value < 0.1 ? 1 : 0)} ms`;
  return value < 120 ? `${number(value, value < 10 ? 2 : 1)} s` : `${number(value / 60)} min`;
}

/** The time of day of seconds since the epoch. */
export const clock = t => new Date(t * 1000).toLocaleTimeString("en-GB");

export function bytes(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit++; }
  return `${number(value, unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export const percent = value =>
  value == null || !Number.isFinite(value) ? "–" : `${number(value * 100, value < 0.1 ? 1 : 0)} %`;

export function quantile(values, q) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(Math.floor(q * sorted.length), sorted.length - 1)];
}

/** Saves a text as a file. */
export function save(name, text, type = "application/json") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A button that copies a text and says so. */
export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" onClick=${copy}>${done ? "Copied" : label}</button>`;
}

export function Problem({ error }) {
  return error ? html`<p class="problem" role="alert">${error.message ?? error}</p>` : null;
}
