// Static against continuous batching of the same requests, step by step.
import { element, load, stepper, svg } from "./guide.js";

/** Slots over steps: for each step the request in each of the slots, 0 = empty. */
export function slots(steps, count) {
  const table = [];
  let held = new Array(count).fill(0);
  for (const { rows } of steps) {
    const ids = rows.map(([id]) => id);
    held = held.map((id) => (ids.includes(id) ? id : 0));
    for (const id of ids) if (!held.includes(id)) held[held.indexOf(0)] = id;
    table.push([...held]);
  }
  return table;
}

export async function draw(place) {
  const data = await load("batching");
  const charts = ["static", "continuous"].map((kind) => ({ kind, table: slots(data[kind], data.slots), steps: data[kind] }));
  const most = Math.max(...charts.map(({ table }) => table.length)) - 1;
  const boxes = charts.map(() => element("div"));
  const show = (now) => charts.forEach((chart, i) => boxes[i].replaceChildren(...drawChart(chart, data, now, most)));
  const control = stepper("Step", most, show, (value) => `${value} of ${most}`);
  place.append(control.node, ...boxes);
  control.set(20);
}

function drawChart({ kind, table, steps }, data, now, most) {
  const width = 640, cell = width / (most + 1), shapes = [];
  table.forEach((held, step) => held.forEach((id, slot) => {
    if (step > now) return;
    const at = { x: step * cell, y: slot * 18, width: Math.max(cell - 0.5, 0.5), height: 16 };
    shapes.push(svg("rect", id ? { ...at, fill: `hsl(${(id * 137) % 360} 55% 50%)` } : { ...at, class: "free" }));
  }));
  const x = Math.min(now, table.length - 1) * cell;
  shapes.push(svg("rect", { x, y: 0, width: cell, height: data.slots * 18, class: "now" }));
  const made = steps.slice(0, now + 1).reduce((sum, { rows }) => sum + rows.length, 0);
  const busy = made / (data.slots * Math.min(now + 1, table.length));
  const done = now >= table.length - 1 ? `; all answered after ${table.length} steps` : "";
  return [
    element("h3", {}, kind === "static" ? "Static: a batch ends with its longest answer" : "Continuous: the next request takes a free slot at once"),
    svg("svg", { viewBox: `0 0 ${width} ${data.slots * 18}`, width, height: data.slots * 18, role: "img",
      "aria-label": `${kind} batching, slots over steps` }, ...shapes),
    element("p", { "data-counter": kind }, `${made} rows computed, ${Math.round(100 * busy)} % of the slots busy${done}.`),
  ];
}
