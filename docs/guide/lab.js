// Tuning lab: predictions of the planner by workload, requests at once and token budget.
import { element, load, slider, svg } from "./guide.js";

export function find(data, profile, concurrency, budget) {
  return data.profiles[profile].rows.find((row) => row.concurrency === concurrency && row.budget === budget);
}

const BARS = [
  ["tokens", "Throughput, output tokens a second", (v) => v.toFixed(0)],
  ["ttft", "Time to first token, median, ms", (v) => v.toFixed(0)],
  ["itl99", "Time between tokens, 99th percentile, ms", (v) => v.toFixed(1)],
  ["kv", "KV cache in use, %", (v) => (100 * v).toFixed(1)],
];

export async function draw(place) {
  const data = await load("lab");
  const chosen = { profile: "chat", concurrency: 2, budget: 1 };
  const about = element("p"), bars = element("div", { "aria-live": "polite" });
  const show = () => {
    const { text, prompt, output, shared, rows } = data.profiles[chosen.profile];
    about.textContent = `${text} ${prompt} tokens in (${shared} shared), ${output} out.`;
    const row = find(data, chosen.profile, data.concurrency[chosen.concurrency], data.budgets[chosen.budget]);
    bars.replaceChildren(...BARS.map(([key, label, format]) => {
      const most = Math.max(...rows.map((each) => each[key])) || 1;
      return element("p", {}, `${label}: `, element("strong", { "data-counter": key }, format(row[key])),
        svg("svg", { class: "guide-bar", viewBox: "0 0 400 10", width: 400, height: 10, role: "img", "aria-label": `${label}: ${format(row[key])}` },
          svg("rect", { x: 0, y: 0, width: 400, height: 10, class: "free" }),
          svg("rect", { x: 0, y: 0, width: Math.max((400 * row[key]) / most, 1), height: 10, class: "bar" })));
    }));
  };
  const profile = element("select", { onchange: () => { chosen.profile = profile.value; concurrency.set(START[chosen.profile][0]); budget.set(START[chosen.profile][1]); } },
    ...Object.keys(data.profiles).map((name) => element("option", { value: name }, name)));
  const concurrency = slider("Requests at once", data.concurrency.length - 1, (v) => { chosen.concurrency = v; show(); }, (v) => `${data.concurrency[v]}`);
  const budget = slider("Tokens of a step (--max-num-batched-tokens)", data.budgets.length - 1, (v) => { chosen.budget = v; show(); }, (v) => `${data.budgets[v]}`);
  place.append(element("p", {}, element("label", {}, "Workload ", profile)), about, element("p", {}, concurrency.node), element("p", {}, budget.node), bars,
    element("p", {}, element("small", {}, `Computed by galley plan for ${data.model} on ${data.machine}.`)));
  concurrency.set(2);
  budget.set(1);
}

/** Settings that a workload begins with: positions of the sliders. */
const START = { chat: [3, 1], documents: [2, 1], writing: [4, 0], tools: [3, 2] };
