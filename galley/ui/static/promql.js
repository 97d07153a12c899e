// The part of PromQL that the alerts and readings of this project use, on scrapes of /metrics.
// A vector is a list of {labels, value}; a range selector gives {labels, points: [[t, value], …]}.

/** Samples of a scrape: [{name, labels, value}]. Only names that begin with one of `prefixes`. */
export function parseMetrics(text, prefixes = ["vllm:", "galley:", "http_"]) {
  const found = [];
  for (const line of text.split("\n")) {
    if (!prefixes.some(prefix => line.startsWith(prefix))) continue;
    const match = /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    const value = match[3] === "+Inf" ? Infinity : Number(match[3]);
    found.push({ name: match[1], labels, value });
  }
  return found;
}

const TOKEN = /\s*(?:("(?:[^"\\]|\\.)*")|([a-zA-Z_:][\w:]*)|(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([smhd])?|(==|!=|>=|<=|=~|[-+*/()<>{},=[\]]))/y;

function tokens(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.trimEnd().length) {
    const match = TOKEN.exec(text);
    if (!match) throw new Error(`not understood: ${text}`);
    const [, string, word, digits, unit, sign] = match;
    if (string) found.push({ kind: "string", value: JSON.parse(string) });
    else if (word) found.push({ kind: "word", value: word });
    else if (unit) found.push({ kind: "span", value: digits * { s: 1, m: 60, h: 3600, d: 86400 }[unit] });
    else if (digits) found.push({ kind: "number", value: Number(digits) });
    else found.push({ kind: "sign", value: sign });
  }
  return found;
}

const AGGREGATES = { sum: list => list.reduce((a, b) => a + b, 0), max: list => Math.max(...list),
  min: list => Math.min(...list), avg: list => list.reduce((a, b) => a + b, 0) / list.length };
const LEVELS = [["and", "or"], ["==", "!=", ">", "<", ">=", "<="], ["+", "-"], ["*", "/"]];
const ARITHMETIC = { "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b,
  "/": (a, b) => a / b };
const COMPARISONS = { "==": (a, b) => a === b, "!=": (a, b) => a !== b, ">": (a, b) => a > b,
  "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b };

const keyOf = (labels, on) => JSON.stringify(
  (on ?? Object.keys(labels).sort()).map(name => [name, labels[name] ?? ""]));

/** The value of an expression over scrapes [{t, samples}], oldest first: a number or a vector. */
export function evaluate(text, scrapes) {
  const list = tokens(text);
  let at = 0;
  const is = value => list[at]?.value === value && list[at].kind !== "string";
  const take = value => {
    if (value !== undefined && !is(value)) throw new Error(`${value} expected in: ${text}`);
    return list[at++];
  };
  const names = () => {
    take("(");
    const found = [];
    while (!is(")")) {
      found.push(take().value);
      if (is(",")) take();
    }
    take(")");
    return found;
  };

  function binary(level) {
    if (level === LEVELS.length) return atom();
    let left = binary(level + 1);
    while (list[at] && LEVELS[level].some(is)) {
      const sign = take().value;
      let on = null;
      if (is("on")) {
        take();
        on = names();
      }
      left = combine(sign, left, binary(level + 1), on);
    }
    return left;
  }

  function combine(sign, left, right, on) {
    if (sign === "and") {
      const there = new Set(right.map(one => keyOf(one.labels, on)));
      return left.filter(one => there.has(keyOf(one.labels, on)));
    }
    if (sign === "or") return left.length ? left : right;
    const compute = ARITHMETIC[sign], compare = COMPARISONS[sign];
    if (typeof left === "number" && typeof right === "number") {
      return compute ? compute(left, right) : Number(compare(left, right));
    }
    const apply = (one, a, b) => (compute ? [{ labels: one.labels, value: compute(a, b) }]
      : compare(a, b) ? [one] : []);
    if (typeof right === "number") return left.flatMap(one => apply(one, one.value, right));
    if (typeof left === "number") return right.flatMap(one => apply(one, left, one.value));
    const others = new Map(right.map(one => [keyOf(one.labels, on), one.value]));
    return left.flatMap(one => {
      const other = others.get(keyOf(one.labels, on));
      return other === undefined ? [] : apply(one, one.value, other);
    });
  }

  function atom() {
    if (is("(")) {
      take();
      const value = binary(0);
      take(")");
      return value;
    }
    const token = take();
    if (token.kind === "number") return token.value;
    if (token.kind !== "word") throw new Error(`not understood: ${text}`);
    if (token.value in AGGREGATES) return aggregate(token.value);
    if (is("(")) return call(token.value);
    return select(token.value);
  }

  function aggregate(name) {
    let by = [];
    if (is("by")) {
      take();
      by = names();
    }
    take("(");
    const vector = binary(0);
    take(")");
    if (is("by")) {
      take();
      by = names();
    }
    const groups = Map.groupBy(vector, one => keyOf(one.labels, by));
    return [...groups.values()].map(group => ({
      labels: Object.fromEntries(by.map(label => [label, group[0].labels[label] ?? ""])),
      value: AGGREGATES[name](group.map(one => one.value)),
    }));
  }

  function select(name) {
    const wanted = [];
    if (is("{")) {
      take();
      while (!is("}")) {
        const label = take().value, sign = take().value, value = take().value;
        wanted.push(found => ({ "=": found === value, "!=": found !== value,
          "=~": new RegExp(`^(?:${value})$`).test(found) })[sign]);
        wanted.at(-1).label = label;
        if (is(",")) take();
      }
      take("}");
    }
    const matches = one => one.name === name &&
      wanted.every(test => test(one.labels[test.label] ?? ""));
    if (!is("[")) {
      const last = scrapes.at(-1)?.samples ?? [];
      return last.filter(matches).map(({ labels, value }) => ({ labels, value }));
    }
    take("[");
    const from = (scrapes.at(-1)?.t ?? 0) - take().value;
    take("]");
    const series = new Map();
    for (const { t, samples } of scrapes) {
      if (t < from) continue;
      for (const one of samples.filter(matches)) {
        const key = keyOf(one.labels);
        if (!series.has(key)) series.set(key, { labels: one.labels, points: [] });
        series.get(key).points.push([t, one.value]);
      }
    }
    return [...series.values()];
  }

  /** How much a counter has gained; one that a restart has set back begins at 0. */
  const gain = points => points.slice(1).reduce((sum, [, value], i) =>
    sum + (value >= points[i][1] ? value - points[i][1] : value), 0);
  const each = (series, compute) => series.filter(one => one.points.length > 1)
    .map(one => ({ labels: one.labels, value: compute(one.points) }));
  const FUNCTIONS = {
    rate: series => each(series, points => gain(points) / (points.at(-1)[0] - points[0][0])),
    increase: series => each(series, gain),
    avg_over_time: series => each(series, points => AGGREGATES.avg(points.map(p => p[1]))),
    max_over_time: series => each(series, points => AGGREGATES.max(points.map(p => p[1]))),
    clamp_min: (vector, least) =>
      vector.map(one => ({ ...one, value: Math.max(one.value, least) })),
    histogram_quantile: histogram,
  };

  function call(name) {
    take("(");
    const given = [binary(0)];
    while (is(",")) {
      take();
      given.push(binary(0));
    }
    take(")");
    if (!(name in FUNCTIONS)) throw new Error(`not understood: ${name}`);
    return FUNCTIONS[name](...given);
  }

  function histogram(q, vector) {
    const others = one => Object.keys(one.labels).filter(name => name !== "le").sort();
    const groups = Map.groupBy(vector, one => keyOf(one.labels, others(one)));
    return [...groups.values()].flatMap(group => {
      const edges = group.map(one => [one.labels.le === "+Inf" ? Infinity : Number(one.labels.le), one.value])
        .sort((a, b) => a[0] - b[0]);
      const total = edges.at(-1)[1];
      if (!total) return [];
      const rank = q * total, i = edges.findIndex(([, count]) => count >= rank);
      const [low, before] = i ? edges[i - 1] : [0, 0], [high, count] = edges[i];
      const value = high === Infinity ? low
        : low + (high - low) * (count > before ? (rank - before) / (count - before) : 1);
      const { le: _, ...labels } = group[0].labels;
      return [{ labels, value }];
    });
  }

  const value = binary(0);
  if (at < list.length) throw new Error(`not understood: ${text}`);
  return value;
}

/** The one number of a value; null where there is none yet. Of several series, the largest. */
export function scalar(value) {
  if (typeof value === "number") return value;
  const numbers = value.map(one => one.value).filter(Number.isFinite);
  return numbers.length ? Math.max(...numbers) : null;
}
