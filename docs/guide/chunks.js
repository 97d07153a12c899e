// A prompt in chunks beside decodes, under a budget: the true steps of a run.
import { element, load, stepper, svg } from "./guide.js";

/** Tokens of a step by request's name, decodes first. */
export function shares(step, names) {
  return step.rows.map(([id, before, count]) => ({ name: names[id], before, count }));
}

export async function draw(place) {
  const data = await load("chunks");
  const box = element("div");
  const most = data.steps.length - 1;
  const control = stepper("Step", most, (index) => box.replaceChildren(...drawStep(data, data.steps[index])), (v) => `${v} of ${most}`);
  place.append(control.node, box);
  control.set(data.steps.findIndex((step) => step.rows.length === 3));
}

function drawStep(data, step) {
  const width = 640, shapes = [svg("rect", { x: 0, y: 0, width, height: 30, class: "free" })];
  let x = 0;
  const parts = shares(step, data.names);
  for (const { name, count } of parts) {
    const size = (width * count) / data.budget;
    shapes.push(svg("rect", { x, y: 0, width: Math.max(size - 1, 1), height: 30, class: name === "A" ? "wasted" : "used" }));
    if (count > 8) shapes.push(svg("text", { x: x + 6, y: 19 }, `${name}: ${count}`));
    x += size;
  }
  const total = parts.reduce((sum, { count }) => sum + count, 0);
  const text = parts.map(({ name, before, count }) =>
    count > 1 ? `${name} computes tokens ${before} to ${before + count - 1} of its prompt` : `${name} decodes one token`);
  return [
    svg("svg", { viewBox: `0 0 ${width} 30`, width, height: 30, role: "img", "aria-label": `${total} of ${data.budget} tokens of the budget` }, ...shapes),
    element("p", {}, `${total} of ${data.budget} tokens: ${text.join("; ")}.`),
  ];
}
