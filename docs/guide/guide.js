// Reading paths, on every page: which pages a role reads, the next one, and the panel at the end.
const ROLES = {
  decide: { title: "Cost, capability and fit", pages: ["fit.md", "features.md", "cost.md"] },
  operate: { title: "Deploy, tune, operate", pages: ["serve.md", "tune.md", "check.md"] },
  engine: {
    title: "Inside the engine",
    pages: ["concepts.md", "memory.md", "batching.md", "life.md", "step.md", "parallel.md"],
  },
  all: { title: "Everything", pages: [] },
};
const TITLES = {
  "fit.md": "Does it fit?", "features.md": "Features and engines", "cost.md": "Cost and adoption",
  "serve.md": "Serve a model", "tune.md": "Tune and watch", "check.md": "Before production",
  "concepts.md": "Concepts", "memory.md": "Memory of the cache", "batching.md": "Batching",
  "life.md": "The life of a prompt", "step.md": "The step and its parts",
  "parallel.md": "Several devices",
};
ROLES.all.pages = [...ROLES.decide.pages, ...ROLES.operate.pages, ...ROLES.engine.pages];
const KEY = "galley-guide-role";

/** The role that was chosen, or the one whose path has the page. */
export function roleOf(page, chosen) {
  if (chosen && ROLES[chosen]?.pages.includes(page)) return chosen;
  return Object.keys(ROLES).find((role) => ROLES[role].pages.includes(page)) ?? "all";
}

/** Pages before and after one on a path; null at its ends. */
export function neighbours(page, role) {
  const pages = ROLES[role].pages;
  const at = pages.indexOf(page);
  return { before: pages[at - 1] ?? null, after: pages[at + 1] ?? null, at, count: pages.length };
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The data that docs/guide/record.py wrote. */
export async function load(name) {
  const reply = await fetch(new URL(`data/${name}.json`, import.meta.url));
  if (!reply.ok) throw new Error(`${name}.json: ${reply.status}`);
  return reply.json();
}

/** A labelled range input with its value beside it. */
export function slider(label, most, onchange, text = (value) => `${value}`) {
  const output = element("output", {}, text(0));
  const input = element("input", {
    type: "range", min: 0, max: most, value: 0, "aria-label": label,
    oninput: () => { output.value = text(Number(input.value)); onchange(Number(input.value)); },
  });
  const set = (value) => { input.value = value; output.value = text(value); onchange(value); };
  return { node: element("label", { class: "guide-slider" }, `${label} `, input, " ", output), set, input };
}

/** A slider with buttons for one step back, forward, and play. */
export function stepper(label, most, onchange, text) {
  const range = slider(label, most, onchange, text);
  let timer = null;
  const go = (delta) => range.set(Math.min(most, Math.max(0, Number(range.input.value) + delta)));
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const play = element("button", {
    type: "button",
    onclick: () => {
      if (timer) return stop();
      if (Number(range.input.value) === most) range.set(0);
      play.textContent = "Pause";
      timer = setInterval(() => { go(1); if (Number(range.input.value) === most) stop(); }, 250);
    },
  }, "Play");
  const back = element("button", { type: "button", onclick: () => { stop(); go(-1); } }, "Back");
  const next = element("button", { type: "button", onclick: () => { stop(); go(1); } }, "Step");
  return { node: element("p", { class: "guide-controls" }, back, " ", next, " ", play, " ", range.node), set: range.set };
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function store(role) { try { localStorage.setItem(KEY, role); } catch { /* private window */ } }
function stored() { try { return localStorage.getItem(KEY); } catch { return null; } }

function pageName() {
  const last = location.pathname.split("/").pop();
  return !last || last === "index.html" ? "index.md" : last.replace(/\.html$/, ".md");
}
const address = (page) => page.replace(/\.md$/, ".html");

function chooser(chosen, onchoose) {
  const buttons = Object.entries(ROLES).map(([role, { title }]) =>
    element("button", {
      type: "button", "data-role": role, "aria-pressed": String(role === chosen),
      onclick: () => { store(role); onchoose(role); },
    }, role === "all" ? "Show everything" : title));
  return element("div", { class: "guide-roles", role: "group", "aria-label": "Reading path" }, ...buttons);
}

/** The first page: sections of the chosen role alone are shown. */
function indexPage(main) {
  const place = main.querySelector("[data-part=paths]");
  if (!place) return;
  const show = (role) => {
    for (const section of main.querySelectorAll("[data-page]"))
      section.hidden = !ROLES[role].pages.includes(section.dataset.page);
    place.replaceChildren(chooser(role, show));
  };
  show(ROLES[stored()] ? stored() : "all");
}

/** Any other page: where one is on the path, and the panel at its end. */
function pathPanel(main, page) {
  const role = roleOf(page, stored());
  const { before, after, at, count } = neighbours(page, role);
  const link = (name, text) => element("a", { href: address(name) }, `${text}${TITLES[name]}`);
  const panel = element("aside", { class: "guide-path", "aria-label": "Reading path" });
  panel.append(element("p", {}, `${ROLES[role].title}: page ${at + 1} of ${count}. `,
    before ? link(before, "← ") : null, before && after ? " · " : "", after ? link(after, "→ ") : null));
  if (!after) {
    const others = Object.keys(ROLES).filter((other) => other !== role);
    panel.append(
      element("h2", {}, "You have finished this path"),
      element("p", {}, "Go on with another one, or show everything:"),
      element("p", {}, ...others.flatMap((other) => [
        element("a", { href: address(ROLES[other].pages[0]), "data-role": other, onclick: () => store(other) },
          other === "all" ? "Show everything" : ROLES[other].title), " "])),
    );
  }
  main.append(panel);
}

/** Tabs: sections of one element, one shown at a time; arrow keys move. */
function tabs(place) {
  const sections = [...place.querySelectorAll(":scope > section")];
  const buttons = sections.map((section, index) => element("button", {
    type: "button", role: "tab", id: `tab-${section.id}`, "aria-controls": section.id,
    onclick: () => choose(index),
    onkeydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { choose((index + by + sections.length) % sections.length); event.preventDefault(); }
    },
  }, section.querySelector("h3").textContent));
  const choose = (chosen) => sections.forEach((section, index) => {
    section.hidden = index !== chosen;
    buttons[index].setAttribute("aria-selected", String(index === chosen));
    buttons[index].tabIndex = index === chosen ? 0 : -1;
    if (index === chosen && place.contains(document.activeElement)) buttons[index].focus();
  });
  for (const section of sections) {
    section.setAttribute("role", "tabpanel");
    section.setAttribute("aria-labelledby", `tab-${section.id}`);
  }
  place.prepend(element("div", { role: "tablist", class: "guide-roles", "aria-label": "Topics" }, ...buttons));
  choose(Math.max(0, sections.findIndex((section) => `#${section.id}` === location.hash)));
}

/** Copy buttons on code that is to be run. */
function copyButtons(main) {
  for (const code of main.querySelectorAll("pre > code[class*=language-]")) {
    const button = element("button", {
      type: "button", class: "guide-copy",
      onclick: async () => { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; },
    }, "Copy");
    code.parentElement.before(button);
  }
}

/** Where a server shows the guide alone, links to the other pages of docs/ are names of files. */
function otherPages(main) {
  if (!location.pathname.includes("/ui/guide")) return;
  for (const link of main.querySelectorAll('a[href^="../"]')) {
    const file = link.getAttribute("href").replace("../", "docs/").replace(/\.html.*/, ".md");
    link.replaceWith(element("span", { title: file }, link.textContent, element("small", {}, ` (${file})`)));
  }
}

async function parts(main) {
  for (const place of main.querySelectorAll("[data-part]")) {
    const name = place.dataset.part;
    if (name === "paths") continue;
    try {
      if (name === "tabs") tabs(place);
      else {
        const part = await import(new URL(`${name}.js`, import.meta.url));
        await part.draw(place);
      }
    } catch (error) {
      place.textContent = `This part could not be shown: ${error.message}`;
    }
  }
}

if (typeof document !== "undefined") {
  const main = document.querySelector("main");
  const page = pageName();
  const style = element("link", { rel: "stylesheet", href: new URL("guide.css", import.meta.url) });
  document.head.append(style);
  indexPage(main);
  if (page in TITLES) pathPanel(main, page);
  copyButtons(main);
  otherPages(main);
  parts(main);
}
