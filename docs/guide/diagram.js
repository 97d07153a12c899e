// The path of a request through the components; each opens its source below.
import { element, load, svg } from "./guide.js";

/** Column and row of each component. */
const BOXES = {
  input: [0, 0], step: [1, 0], scheduler: [2, 0], executor: [3, 0],
  output: [0, 1], kv: [2, 1], runner: [3, 1],
};
const ARROWS = [["input", "step"], ["step", "scheduler"], ["scheduler", "executor"], ["executor", "runner"], ["scheduler", "kv"], ["step", "output"]];
const WIDTH = 150, HEIGHT = 56, ACROSS = 180, DOWN = 90;

export async function draw(place) {
  const data = await load("code");
  const at = (key) => [4 + BOXES[key][0] * ACROSS, 4 + BOXES[key][1] * DOWN];
  const arrows = ARROWS.map(([from, to]) => {
    const [x, y] = at(from), [u, v] = at(to);
    const ends = y === v ? { x1: x + WIDTH, y1: y + HEIGHT / 2, x2: u - 4, y2: v + HEIGHT / 2 }
      : { x1: x + WIDTH / 2, y1: y + HEIGHT, x2: u + WIDTH / 2, y2: v - 4 };
    return svg("line", { ...ends, class: "line", "marker-end": "url(#arrow)" });
  });
  const boxes = Object.keys(BOXES).map((key) => {
    const [x, y] = at(key), { title, file } = data[key];
    const name = key === "step" ? "Engine core" : title;
    return svg("a", { href: `#source-${key}`, "aria-label": `${name}: ${file}` },
      svg("rect", { x, y, width: WIDTH, height: HEIGHT, rx: 6, class: "free" }),
      svg("text", { x: x + 10, y: y + 24, class: "name" }, name),
      svg("text", { x: x + 10, y: y + 42 }, file.split("/").slice(-2).join("/")));
  });
  const told = element("p", { "aria-live": "polite" }, "Choose a component to open its source.");
  const tell = () => {
    const key = location.hash.replace("#source-", "");
    if (!(key in BOXES)) return;
    const { file } = data[key];
    const [, why] = [...document.querySelectorAll("tr")].find((row) => row.textContent.includes(file)).cells;
    const link = element("a", { href: `source/${file}.html` }, element("code", {}, file));
    told.replaceChildren(element("strong", {}, why.textContent), ". The whole file: ", link);
  };
  addEventListener("hashchange", tell);
  const head = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
    svg("path", { d: "M0 0 8 4 0 8", class: "line", fill: "none" }));
  const width = 3 * ACROSS + WIDTH + 8, height = DOWN + HEIGHT + 8;
  place.append(svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, svg("defs", {}, head), ...arrows, ...boxes), told);
  tell();
}
