// Contiguous reservations beside the pool of blocks, for a burst that this engine served.
import { element, load, stepper, svg } from "./guide.js";

const COLOURS = 10;
const hue = (request) => `hsl(${((request - 1) * 360) / COLOURS} 55% 50%)`;

/** What a contiguous cache holds at a step: it admits in order as long as a reservation fits. */
export function contiguous(data) {
  const room = Math.floor((data.blocks * data.block_size) / data.reserved);
  const length = new Map(data.requests.map((r, i) => [i + 1, r.prompt + r.output]));
  const running = [], waiting = [], done = new Map();
  let next = 0;
  const steps = [];
  for (let step = 0; next < data.requests.length || running.length || waiting.length; step += 1) {
    while (next < data.requests.length && data.requests[next].step <= step) { next += 1; waiting.push(next); }
    while (waiting.length && running.length < room) { const id = waiting.shift(); running.push(id); done.set(id, data.requests[id - 1].prompt); }
    steps.push({ held: running.map((id) => [id, done.get(id)]), waiting: waiting.length });
    for (const id of [...running]) {
      done.set(id, done.get(id) + 1);
      if (done.get(id) >= length.get(id)) running.splice(running.indexOf(id), 1);
    }
  }
  return { room, steps };
}

/** Tokens that are used and reserved but unused, with blocks. */
export function paged(data, step) {
  let used = 0, held = 0;
  const written = new Map(step.rows.map(([id, before, count]) => [String(id), before + count]));
  for (const [id, blocks] of Object.entries(step.blocks)) {
    held += blocks.length * data.block_size;
    used += Math.min(written.get(id) ?? blocks.length * data.block_size, blocks.length * data.block_size);
  }
  return { used, wasted: held - used };
}

export async function draw(place) {
  const data = await load("burst");
  const other = contiguous(data);
  const left = element("div"), right = element("div");
  const show = (index) => {
    left.replaceChildren(...drawContiguous(data, other.steps[Math.min(index, other.steps.length - 1)], other.room, index >= other.steps.length));
    right.replaceChildren(...drawPaged(data, data.steps[Math.min(index, data.steps.length - 1)], index >= data.steps.length));
  };
  const most = Math.max(other.steps.length, data.steps.length) - 1;
  const control = stepper("Step", most, show, (value) => `${value} of ${most}`);
  place.append(control.node, element("div", { class: "guide-sides" }, left, right));
  control.set(12);
}

function drawContiguous(data, step, room, over) {
  const used = step.held.reduce((sum, [, tokens]) => sum + tokens, 0);
  const wasted = step.held.length * data.reserved - used;
  const rows = [];
  for (let i = 0; i < room; i += 1) {
    const [id, tokens] = step.held[i] ?? [0, 0];
    rows.push(svg("rect", { x: 0, y: i * 34, width: 320, height: 26, class: id ? "wasted" : "free" }));
    if (id) {
      rows.push(svg("rect", { x: 0, y: i * 34, width: (320 * tokens) / data.reserved, height: 26, fill: hue(id) }));
      rows.push(svg("text", { x: 4, y: i * 34 + 17 }, `request ${id}: ${tokens} of ${data.reserved}`));
    }
  }
  return [
    element("h3", {}, `${data.reserved} tokens reserved for each`),
    svg2(320, room * 34, `Contiguous reservations: ${used} tokens used, ${wasted} reserved and unused`, rows),
    element("p", {}, over ? "All answered. " : `Running ${step.held.length}, waiting ${step.waiting}. `,
      `Used ${used} tokens, reserved and unused `, element("strong", { "data-counter": "contiguous" }, `${wasted}`), "."),
  ];
}

function drawPaged(data, step, over) {
  const owner = new Map();
  for (const [id, blocks] of Object.entries(step.blocks)) for (const block of blocks) owner.set(block, Number(id));
  const cells = [];
  for (let block = 1; block <= data.blocks; block += 1) {
    const id = owner.get(block), at = block - 1;
    const cell = { x: (at % 16) * 20, y: Math.floor(at / 16) * 20, width: 18, height: 18 };
    cells.push(svg("rect", id ? { ...cell, fill: hue(id) } : { ...cell, class: "free" }));
    if (id) cells.push(svg("text", { x: cell.x + 3, y: cell.y + 13 }, `${id}`));
  }
  const { used, wasted } = paged(data, step);
  return [
    element("h3", {}, `Blocks of ${data.block_size} tokens, taken when needed`),
    svg2(320, Math.ceil(data.blocks / 16) * 20, `Pool of blocks: ${used} tokens used, ${wasted} reserved and unused`, cells),
    element("p", {}, over ? "All answered. " : `Running ${Object.keys(step.blocks).length}, waiting ${step.waiting}. `,
      `Used ${used} tokens, reserved and unused `, element("strong", { "data-counter": "paged" }, `${wasted}`), "."),
  ];
}

function svg2(width, height, label, children) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...children);
}
