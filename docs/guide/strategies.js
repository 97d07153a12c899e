// Five strategies of parallelism: topology, fit, tradeoff, flag.
import { element, svg } from "./guide.js";

/** Boxes of four devices: what each holds. */
export const HOLDS = {
  tp: ["¼ of every layer", "¼ of every layer", "¼ of every layer", "¼ of every layer"],
  pp: ["layers 1–8", "layers 9–16", "layers 17–24", "layers 25–32"],
  dp: ["all, requests a", "all, requests b", "all, requests c", "all, requests d"],
  ep: ["experts 1–16", "experts 17–32", "experts 33–48", "experts 49–64"],
  cp: ["tokens 1–8k", "tokens 8k–16k", "tokens 16k–24k", "tokens 24k–32k"],
};

export async function draw(place) {
  const sections = [...place.querySelectorAll("section")];
  for (const section of sections) {
    const shapes = HOLDS[section.id].flatMap((text, i) => [
      svg("rect", { x: i * 155, y: 4, width: 135, height: 44, class: "free" }),
      svg("text", { x: i * 155 + 8, y: 30 }, text),
      ...(i ? [svg("line", { x1: i * 155 - 20, y1: 26, x2: i * 155, y2: 26, class: "line", "stroke-dasharray": section.id === "dp" ? "2 4" : "none" })] : []),
    ]);
    section.querySelector("h3").after(svg("svg", { viewBox: "0 0 620 52", width: 620, height: 52, role: "img", "aria-label": `Four devices: ${HOLDS[section.id].join(", ")}` }, ...shapes));
  }
  const pick = element("select", { onchange: () => sections.forEach((s) => { s.hidden = s.id !== pick.value; }) },
    ...sections.map((s) => element("option", { value: s.id }, s.querySelector("h3").textContent)));
  place.prepend(element("p", {}, element("label", {}, "Strategy ", pick)));
  pick.dispatchEvent(new Event("change"));
}
