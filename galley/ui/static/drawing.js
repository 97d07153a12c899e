// Canvases of the live view: the block pool, the batches of steps, one request's life, and charts.
import { clock, html, useEffect, useLayoutEffect, useRef } from "./common.js";
import { bitsOf, decodes, kindsOf } from "./recording.js";

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const isDark = () => css("color-scheme") === "dark" ||
  (document.documentElement.dataset.theme !== "light" &&
    matchMedia("(prefers-color-scheme: dark)").matches);

/** A request's colour: successive requests are far apart. */
export function colourOf(handle) {
  const hue = ((handle % 2 ** 40) * 137.508) % 360;
  return `hsl(${hue.toFixed(0)} 62% ${isDark() ? 64 : 46}%)`;
}

/** A canvas of a height, drawn again when anything in `inputs` or the size or theme changes. */
function Canvas({ height, label, draw, inputs, onPick }) {
  const canvas = useRef();
  const paint = () => {
    const element = canvas.current;
    if (!element) return;
    const scale = devicePixelRatio || 1;
    const width = element.clientWidth;
    const tall = typeof height === "function" ? height(width) : height;
    element.width = width * scale;
    element.height = tall * scale;
    element.style.height = `${tall}px`;
    const context = element.getContext("2d");
    context.scale(scale, scale);
    draw(context, width, tall);
  };
  useLayoutEffect(paint, inputs);
  const latest = useRef();
  latest.current = paint;
  useEffect(() => {
    const again = () => latest.current();
    const sizes = new ResizeObserver(again);
    sizes.observe(canvas.current.parentElement);
    addEventListener("galley-theme", again);
    return () => {
      sizes.disconnect();
      removeEventListener("galley-theme", again);
    };
  }, []);
  const pick = event => onPick && onPick(event.offsetX, event.offsetY, canvas.current.clientWidth);
  return html`<canvas ref=${canvas} role="img" aria-label=${label} onPointerMove=${pick}
    onPointerDown=${pick}></canvas>`;
}

/** block → the requests that hold it. */
export function ownersOf(view) {
  const owners = new Map();
  for (const { handle, blocks } of view.running) {
    for (const block of blocks.flat()) {
      if (!block) continue;
      const known = owners.get(block);
      if (known) known.push(handle);
      else owners.set(block, [handle]);
    }
  }
  return owners;
}

const GAP = 1;

/** Side of a block's cell, gap included, so that all of them fit. */
function cellOf(width, blocks) {
  for (let cell = 14; cell > 2; cell--) {
    const columns = Math.max(Math.floor(width / cell), 1);
    if (Math.ceil(blocks / columns) * cell <= 300) return cell;
  }
  return 2;
}

/** The pool: one cell a block, in order of their ids from 1. */
export function Pool({ view, chosen, onBlock }) {
  const blocks = view.limits.num_blocks;
  const layout = width => {
    const cell = cellOf(width, blocks);
    return { cell, columns: Math.max(Math.floor(width / cell), 1) };
  };
  const height = width => {
    const { cell, columns } = layout(width);
    return Math.ceil(blocks / columns) * cell;
  };
  const draw = (context, width) => {
    const { cell, columns } = layout(width);
    const side = cell > 3 ? cell - GAP : cell;
    const owners = ownersOf(view), cached = bitsOf(view.cached);
    const free = css("--free"), kept = css("--cached");
    for (let block = 1; block <= blocks; block++) {
      const x = ((block - 1) % columns) * cell, y = Math.floor((block - 1) / columns) * cell;
      const held = owners.get(block);
      if (!held) {
        context.fillStyle = cached(block) ? kept : free;
        context.fillRect(x, y, side, side);
        continue;
      }
      context.globalAlpha = chosen !== null && !held.includes(chosen) ? 0.22 : 1;
      const shown = held.slice(0, 4);
      shown.forEach((handle, i) => {
        context.fillStyle = colourOf(handle);
        context.fillRect(x + (i * side) / shown.length, y, side / shown.length, side);
      });
      context.globalAlpha = 1;
    }
  };
  const pick = (x, y, width) => {
    const { cell, columns } = layout(width);
    const block = Math.floor(y / cell) * columns + Math.floor(x / cell) + 1;
    if (Math.floor(x / cell) < columns && block <= blocks) onBlock(block);
  };
  const label = `Pool of ${blocks} blocks: ${view.blocks_used} in use. ` +
    "The table of requests has the same numbers.";
  return html`<${Canvas} height=${height} label=${label} draw=${draw} onPick=${pick}
    inputs=${[view, chosen]} />`;
}

const BARS = 90;

/** The batches of the last steps: a bar a step, its tokens by kind. */
export function Batches({ steps, chosen, onStep }) {
  const shown = steps.slice(-BARS);
  const budget = shown.at(-1)?.budget ?? 0;
  const highest = Math.max(4, ...shown.map(step => step.tokens));
  // Once steps come near the budget, it is the upper edge.
  const most = highest > budget / 4 ? Math.max(budget, highest) : highest;
  const draw = (context, width, height) => {
    const bar = width / BARS, scale = (height - 16) / most;
    const colours = ["decode", "draft", "prefill"].map(kind => [kind, css(`--${kind}`)]);
    context.fillStyle = css("--muted");
    context.font = "11px system-ui, sans-serif";
    context.fillText(`${most} tokens${most === budget ? ": the budget" : ""}`, 0, 10);
    context.strokeStyle = css("--line");
    context.beginPath();
    context.moveTo(0, 15.5);
    context.lineTo(width, 15.5);
    context.stroke();
    shown.forEach((step, i) => {
      const kinds = kindsOf(step);
      const x = (BARS - shown.length + i) * bar;
      let y = height;
      context.globalAlpha = chosen === null || chosen === step.number ? 1 : 0.55;
      for (const [kind, colour] of colours) {
        if (!kinds[kind]) continue;
        const tall = Math.max(kinds[kind] * scale, 3);
        context.fillStyle = colour;
        context.fillRect(x, y - tall, Math.max(bar - 1, 1), tall);
        y -= tall;
      }
      context.globalAlpha = 1;
    });
  };
  const pick = (x, _, width) => {
    const at = Math.floor(x / (width / BARS)) - (BARS - shown.length);
    if (shown[at]) onStep(shown[at].number);
  };
  return html`<${Canvas} height=${150} draw=${draw} onPick=${pick}
    label=${`Tokens of the last ${shown.length} steps, by kind`}
    inputs=${[shown.at(-1), shown.length, chosen]} />`;
}

/** A request from its arrival to its last token: waiting, prefill, decode. */
export function Life({ life, until }) {
  const from = life.queued ?? life.marks[0]?.begin ?? until;
  const to = Math.max(Math.min(life.ended?.t ?? until, until), from + 1e-3);
  const marks = life.marks.filter(mark => mark.end <= until);
  const draw = (context, width, height) => {
    const x = t => ((t - from) / (to - from)) * width;
    context.fillStyle = css("--soft");
    context.fillRect(0, 0, width, height);
    for (const mark of marks) {
      context.fillStyle = css(decodes(mark) ? mark.tokens > 1 ? "--draft" : "--decode" : "--prefill");
      context.fillRect(x(mark.begin), 0, Math.max(x(mark.end) - x(mark.begin) - 0.5, 0.8), height);
    }
  };
  return html`<${Canvas} height=${26} draw=${draw} inputs=${[life, until, marks.length]}
    label=${`${marks.length} steps of this request over time`} />`;
}

let plotting = null;

/** uPlot, loaded when the first chart is drawn. */
function loadPlots() {
  plotting ??= new Promise((resolve, reject) => {
    const sheet = Object.assign(document.createElement("link"), {
      rel: "stylesheet", href: "vendor/uplot.css",
    });
    const script = Object.assign(document.createElement("script"), {
      src: "vendor/uplot.js", onload: () => resolve(window.uPlot), onerror: reject,
    });
    document.head.append(sheet, script);
  });
  return plotting;
}

/** Curves over time. `data`: [times, values, …]; `series`: [{label, colour}]. */
export function Chart({ data, series, label, height = 130 }) {
  const place = useRef(), plot = useRef(null), latest = useRef();
  latest.current = data;
  useEffect(() => {
    let gone = false;
    const make = async () => {
      const uPlot = await loadPlots();
      if (gone) return;
      plot.current?.destroy();
      const axis = {
        stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false },
        font: "11px system-ui, sans-serif",
      };
      plot.current = new uPlot({
        width: place.current.clientWidth, height, legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
        axes: [{ ...axis, size: 26, space: 80, values: (_, times) => times.map(clock) },
          { ...axis, size: 46 }],
        series: [{}, ...series.map(({ colour }) =>
          ({ stroke: css(colour), width: 1.6, points: { show: false } }))],
      }, latest.current, place.current);
    };
    make();
    const sizes = new ResizeObserver(() =>
      plot.current?.setSize({ width: place.current.clientWidth, height }));
    sizes.observe(place.current);
    addEventListener("galley-theme", make);
    return () => {
      gone = true;
      sizes.disconnect();
      removeEventListener("galley-theme", make);
      plot.current?.destroy();
    };
  }, []);
  useEffect(() => { plot.current?.setData(data); }, [data]);
  return html`<div role="img" aria-label=${label} ref=${place}></div>`;
}
