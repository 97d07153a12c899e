// What the live view knows: the frames of the last minutes, and what follows from them. Every number
// comes from the engine's step trace or from its state at a frame. docs/ui.md describes frames.

/** Seconds that are kept, and bytes of frames at most. */
const KEEP = 300;
const MOST_BYTES = 64e6;
const CLIENT = 2 ** 40;

/** A request's short name: its number, after that of its API server where there are several. */
export function nameOf(handle) {
  const client = Math.floor(handle / CLIENT);
  return client ? `r${client}.${handle % CLIENT}` : `r${handle}`;
}

/** Bit i of base64 text, as a function of i. */
export function bitsOf(text) {
  const bytes = atob(text);
  return i => (bytes.charCodeAt(i >> 3) >> (i & 7)) & 1;
}

/** step → its entries, of entries that begin with their step. */
function byStep(entries) {
  const found = new Map();
  for (const entry of entries) found.set(entry[0], [...(found.get(entry[0]) ?? []), entry]);
  return found;
}

/** Whether a row decodes: it computes exactly what it samples, a known token and drafts. */
export const decodes = row => row.tokens === row.sampled;

/** The tokens of a step by kind. */
export function kindsOf(step) {
  const kinds = { prefill: 0, decode: 0, draft: 0, prompts: 0 };
  for (const row of step.rows) {
    if (decodes(row)) {
      kinds.decode += 1;
      kinds.draft += row.tokens - 1;
    } else {
      kinds.prefill += row.tokens;
      kinds.prompts += 1;
    }
  }
  return kinds;
}

export class Recording {
  /** What was received, oldest first: {now, engines | down}. */
  frames = [];
  /** Steps of all incarnations, oldest first. */
  steps = [];
  /** handle → its life. */
  requests = new Map();
  /** {t, text, tone} */
  events = [];
  /** {t, v} of requests and tokens, in seconds. */
  ttft = [];
  itl = [];
  restarts = 0;
  #epoch = null;
  /** Number of the last step of this incarnation. */
  #step = null;
  #down = false;
  #bytes = 0;
  #live = new Set();

  get first() { return this.frames[0]?.now ?? 0; }
  get last() { return this.frames.at(-1)?.now ?? 0; }

  add(frame, size = JSON.stringify(frame).length) {
    if (frame.down !== undefined) {
      if (!this.#down) this.#tell(frame.now, `The engine is down: ${frame.down}`, "bad");
      this.#down = true;
      this.#keep({ now: frame.now, down: frame.down }, size);
      return;
    }
    const view = frame.engines[0];
    if (this.#epoch !== null && view.epoch !== this.#epoch) this.#restarted(view);
    this.#down = false;
    this.#epoch = view.epoch;
    this.#addSteps(view);
    for (const one of [...view.running, ...view.waiting]) {
      const life = this.#life(one.handle);
      life.prompt = one.num_prompt;
      life.id = one.request_id;
      life.queued ??= one.queued;
    }
    this.#live = new Set([...view.running, ...view.waiting].map(one => one.handle));
    this.#keep({ now: view.now, engines: frame.engines }, size);
  }

  #restarted(view) {
    const here = [...view.running, ...view.waiting].map(one => one.handle);
    const known = here.filter(handle => this.#live.has(handle));
    const replayed = known.length
      ? `; ${known.map(nameOf).join(", ")} ${known.length > 1 ? "go" : "goes"} on where it was` : "";
    this.restarts += 1;
    this.#step = null;
    this.#tell(view.now, `The engine is back (incarnation ${view.epoch})${replayed}`, "good");
    for (const handle of known) {
      const life = this.#life(handle);
      life.replays += 1;
      life.lastToken = null;
    }
  }

  #addSteps(view) {
    const { columns, rows } = view;
    const starts = byStep(rows.started), ends = byStep(rows.ended);
    const gap = this.#step === null ? 0 : columns.step[0] - this.#step - 1;
    if (gap > 0) this.#tell(view.now, `${gap} steps were not seen here`, "");
    let row = 0;
    columns.step.forEach((number, i) => {
      const count = rows.counts[i] ?? 0;
      if (this.#step !== null && number <= this.#step) {
        row += count; // known: after a break another API server may send it again
        return;
      }
      this.#step = number;
      const step = {
        number, epoch: view.epoch, begin: view.begin[i],
        schedule: view.schedule[i] / 1e6, execute: view.execute[i] / 1e6,
        commit: view.commit[i] / 1e6,
        budget: view.limits.max_num_batched_tokens,
        tokens: columns.num_tokens[i], output: columns.num_output[i],
        running: columns.num_running[i], waiting: columns.num_waiting[i],
        free: columns.blocks_free[i], taken: columns.blocks_taken[i],
        released: columns.blocks_released[i], evicted: columns.blocks_evicted[i],
        preemptions: columns.preemptions[i], rows: [],
      };
      step.end = step.begin + step.schedule + step.execute + step.commit;
      for (let n = count; n > 0; n--, row++) {
        step.rows.push({
          handle: rows.handles[row], tokens: rows.tokens[row], sampled: rows.sampled[row],
        });
      }
      for (const [, handle, cached, queued, admitted, resumed] of starts.get(number) ?? []) {
        const life = this.#life(handle);
        life.queued ??= queued;
        life.admissions.push({ t: admitted, cached, resumed, epoch: view.epoch });
      }
      for (const of of step.rows) this.#mark(step, of);
      for (const [, handle, reason] of ends.get(number) ?? []) {
        this.#life(handle).ended = { t: step.end, reason };
      }
      if (step.preemptions) {
        this.#tell(step.end, `${step.preemptions} preempted in step ${number}: no free blocks`, "bad");
      }
      this.steps.push(step);
    });
  }

  /** What a step was for one request. */
  #mark(step, row) {
    const life = this.#life(row.handle);
    life.marks.push({ begin: step.begin, end: step.end, step: step.number, ...row });
    if (!row.sampled) return;
    if (life.first === null) {
      life.first = step.end;
      // One that has been admitted before this view began has a first token that was not seen.
      if (life.queued !== null && life.admissions.length) {
        this.ttft.push({ t: step.end, v: step.end - life.queued });
      }
    } else if (life.lastToken !== null) {
      this.itl.push({ t: step.end, v: step.end - life.lastToken });
    }
    life.lastToken = step.end;
  }

  #life(handle) {
    let life = this.requests.get(handle);
    if (!life) {
      life = {
        handle, queued: null, admissions: [], first: null, lastToken: null, ended: null,
        prompt: null, id: "", replays: 0, marks: [],
      };
      this.requests.set(handle, life);
    }
    return life;
  }

  #tell(t, text, tone) { this.events.push({ t, text, tone }); }

  #keep(frame, size) {
    frame.size = size;
    this.frames.push(frame);
    this.#bytes += size;
    const before = frame.now - KEEP;
    while (this.frames.length > 2 && (this.frames[0].now < before || this.#bytes > MOST_BYTES)) {
      this.#bytes -= this.frames.shift().size;
    }
    const oldest = this.frames[0].now;
    const drop = (list, timeOf) => {
      const n = list.findIndex(one => timeOf(one) >= oldest);
      if (n > 0) list.splice(0, n);
      else if (n < 0) list.length = 0;
    };
    if (this.steps.length && this.steps[0].end < oldest - 10) {
      drop(this.steps, step => step.end);
      drop(this.ttft, one => one.t);
      drop(this.itl, one => one.t);
      drop(this.events, one => one.t);
      for (const [handle, life] of this.requests) {
        const seen = life.ended?.t ?? (this.#live.has(handle) ? Infinity : life.lastToken ?? 0);
        if (seen < oldest) this.requests.delete(handle);
        else drop(life.marks, mark => mark.end);
      }
    }
  }

  /** The index of the last step that ended by time t; -1: none. */
  stepAt(t) {
    let low = 0, high = this.steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle].end <= t) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** The figures of the `window` seconds before t. */
  figures(t, window) {
    const from = Math.max(t - window, this.steps[0]?.begin ?? t);
    const span = Math.max(t - from, 1e-9);
    let output = 0, prompt = 0, preempted = 0, drafts = 0, accepted = 0;
    for (let i = this.stepAt(t); i >= 0 && this.steps[i].end > from; i--) {
      const step = this.steps[i], kinds = kindsOf(step);
      output += step.output;
      prompt += kinds.prefill;
      preempted += step.preemptions;
      drafts += kinds.draft;
      if (kinds.draft) accepted += step.output - step.rows.filter(row => row.sampled).length;
    }
    const within = list => list.filter(one => one.t > from && one.t <= t).map(one => one.v);
    return {
      span, output: output / span, prompt: prompt / span, preempted, drafts, accepted,
      ttft: within(this.ttft), itl: within(this.itl),
    };
  }

  /** The file: Chrome's trace format, so that Perfetto opens it, with the frames beside it. */
  file(facts) {
    const events = [
      { ph: "M", pid: 1, name: "process_name", args: { name: "Galley engine" } },
      { ph: "M", pid: 1, tid: 1, name: "thread_name", args: { name: "steps" } },
      { ph: "M", pid: 2, name: "process_name", args: { name: "Requests" } },
    ];
    // Whole microseconds, and no slice ends after the next one of its track has begun: they nest.
    const micro = t => Math.round(t * 1e6);
    const slice = (pid, tid, name, begin, end, args = {}) => events.push({
      ph: "X", pid, tid, name, ts: micro(begin), dur: Math.max(micro(end) - micro(begin), 0), args,
    });
    const endOf = (list, i) => Math.min(list[i].end, list[i + 1]?.begin ?? Infinity);
    this.steps.forEach((step, i) => {
      const end = endOf(this.steps, i);
      const submit = Math.min(step.begin + step.schedule, end);
      const sampled = Math.min(submit + step.execute, end);
      slice(1, 1, `step ${step.number}`, step.begin, end, kindsOf(step));
      slice(1, 1, "schedule", step.begin, submit);
      slice(1, 1, "execute", submit, sampled);
      slice(1, 1, "commit", sampled, end);
      const count = (name, args) => events.push({ ph: "C", pid: 1, name, ts: micro(end), args });
      count("requests", { running: step.running, waiting: step.waiting });
      count("free blocks", { free: step.free });
    });
    let track = 1;
    for (const life of this.requests.values()) {
      const tid = track++;
      const name = nameOf(life.handle);
      events.push({ ph: "M", pid: 2, tid, name: "thread_name", args: { name } });
      const admitted = life.admissions[0];
      if (admitted && life.queued !== null) {
        const end = Math.min(admitted.t, life.marks[0]?.begin ?? Infinity);
        slice(2, tid, "queued", Math.min(life.queued, end), end);
      }
      life.marks.forEach((mark, i) => {
        const args = { step: mark.step, tokens: mark.tokens, sampled: mark.sampled };
        slice(2, tid, decodes(mark) ? "decode" : "prefill", mark.begin, endOf(life.marks, i), args);
      });
    }
    for (const { t, text } of this.events) {
      events.push({ ph: "i", s: "g", pid: 1, tid: 1, name: text, ts: micro(t) });
    }
    const frames = this.frames.map(({ size, ...frame }) => frame);
    const { version, models } = facts;
    return JSON.stringify({
      displayTimeUnit: "ms", traceEvents: events, galley: { format: 1, version, models, frames },
    });
  }

  /** The recording of a file's text. Throws Error if it is none. */
  static read(text) {
    let found;
    try { found = JSON.parse(text).galley; } catch { /* told below */ }
    if (found?.format !== 1) throw new Error("This file is not a recording of Galley's live view.");
    const recording = new Recording();
    for (const frame of found.frames) recording.add(frame);
    return recording;
  }
}
