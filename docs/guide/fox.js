// The life of a prompt: tokens, steps, and the cache that fills.
import { element, load, stepper } from "./guide.js";

/** Text and tokens of the cache after a step. */
export function after(data, index) {
  const [, before, count] = data.steps[index].rows[0];
  const all = [...data.prompt, ...data.output];
  return { cached: all.slice(0, before + count), made: data.output.slice(0, index + 1), computed: all.slice(before, before + count) };
}

export async function draw(place) {
  const data = await load("life");
  const box = element("div", { "aria-live": "polite" });
  const most = data.steps.length - 1;
  const show = (index) => {
    const { cached, made, computed } = after(data, index);
    const list = (tokens) => tokens.map(({ id, text }) => element("span", { class: "cell" }, `${JSON.stringify(text)} `, element("small", {}, `${id}`)));
    box.replaceChildren(
      element("p", {}, index === 0 ? `Prefill: all ${computed.length} tokens of the prompt are computed in one step.` : "Decode: the last token is computed, and the next one is sampled."),
      element("p", {}, "Keys and values in the cache, block " + data.steps[index].blocks.join(", ") + ":"),
      element("div", { class: "guide-roles" }, ...list(cached)),
      element("p", {}, "Sampled: ", element("strong", {}, JSON.stringify(made.at(-1).text)), ". Streamed so far: ", element("q", {}, made.map(({ text }) => text).join(""))),
    );
  };
  const control = stepper("Step", most, show, (value) => `${value + 1} of ${most + 1}`);
  place.append(element("p", {}, element("q", {}, data.text), ` becomes ${data.prompt.length} tokens: `, data.prompt.map(({ id }) => id).join(", "), "."), control.node, box);
  control.set(0);
}
