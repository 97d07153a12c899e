// The frame: navigation, theme, API key. Each page is a module, loaded when it is opened.
import { html, json, key, render, useEffect, useRef, useState } from "./common.js";

const PAGES = {
  chat: "Chat",
  live: "Live",
  step: "Inside a step",
  operate: "Operate",
};
const THEMES = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" };

const page = () => {
  const name = location.hash.replace(/^#\/?/, "").split("/")[0];
  return name in PAGES ? name : null;
};

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("galley.theme") ?? "");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("galley.theme", theme);
    dispatchEvent(new Event("galley-theme"));
  }, [theme]);
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(theme) + 1) % names.length];
  return html`<button type="button" class="quiet" onClick=${() => setTheme(next)}>
    ${THEMES[theme]}</button>`;
}

function KeyForm({ wasRefused, onDone }) {
  const input = useRef();
  useEffect(() => input.current.focus(), []);
  const submit = event => {
    event.preventDefault();
    key.set(input.current.value.trim());
    onDone();
  };
  return html`<form class="panel key" onSubmit=${submit}>
    <h2>API key</h2>
    ${wasRefused ? html`<p class="problem" role="alert">The server does not accept this key.</p>`
      : html`<p>This server wants a key. It is kept in this tab alone.</p>`}
    <label>Key <input ref=${input} type="password" autocomplete="off" required /></label>
    <button class="primary">Use key</button>
  </form>`;
}

function App() {
  const [facts, setFacts] = useState(null);
  const [error, setError] = useState(null);
  const [needsKey, setNeedsKey] = useState(false);
  const [, setTried] = useState(0);
  const [current, setCurrent] = useState(page());
  const [Page, setPage] = useState(null);
  const main = useRef();
  const ask = () => json("/ui/api/server").then(
    found => { setFacts(found); setError(null); setNeedsKey(false); },
    failure => {
      setTried(n => n + 1);
      if (failure.status === 401) setNeedsKey(true);
      else setError(failure);
    },
  );
  useEffect(() => {
    ask();
    const moved = () => {
      setCurrent(page());
      main.current?.focus();
    };
    const refused = () => setNeedsKey(true);
    addEventListener("hashchange", moved);
    addEventListener("galley-key", refused);
    return () => {
      removeEventListener("hashchange", moved);
      removeEventListener("galley-key", refused);
    };
  }, []);
  const pages = facts?.recording ? ["live"]
    : Object.keys(PAGES).filter(name => name !== "chat" || facts?.chats !== false);
  const shown = current && pages.includes(current) ? current : facts && pages[0];
  useEffect(() => {
    document.title = shown ? `${PAGES[shown]} · Galley` : "Galley";
    setPage(null);
    if (shown) import(`./${shown}.js`).then(module => setPage(() => module.default), setError);
  }, [shown]);
  return html`
    <a class="skip" href="#main" onClick=${e => { e.preventDefault(); main.current.focus(); }}>
      Skip to content</a>
    <header>
      <span class="brand">Galley</span>
      <nav aria-label="Pages">
        ${pages.map(name => html`<a href="#/${name}"
          aria-current=${name === shown ? "page" : null}>${PAGES[name]}</a>`)}
        ${facts?.guide && html`<a href="guide/">Guide</a>`}
      </nav>
      <span class="model">${facts?.recording ? `recording ${facts.recording}`
        : facts?.models?.[0] ?? ""}</span>
      <${Theme} />
    </header>
    <main id="main" ref=${main} tabindex="-1">
      ${needsKey ? html`<${KeyForm} wasRefused=${key.get() !== ""} onDone=${ask} />`
        : error ? html`<p class="problem" role="alert">${error.message}</p>`
        : Page && facts ? html`<${Page} facts=${facts} />`
        : html`<h1 class="visually-hidden">Galley</h1>`}
    </main>`;
}

render(html`<${App} />`, document.body);
