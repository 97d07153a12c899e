// Lines of the engine's source, with their numbers; components open on demand.
import { element, load } from "./guide.js";

export async function draw(place) {
  const data = await load("code");
  for (const key of (place.dataset.show ?? Object.keys(data).join(" ")).split(" ")) {
    const { title, file, name, first, lines } = data[key];
    const code = element("pre", { class: "guide-code", tabindex: 0 }, ...lines.map((line, i) =>
      element("span", { id: `${key}-${first + i}` }, element("i", {}, `${first + i}`), `${line}\n`)));
    const where = element("p", {}, element("code", {}, `${file}:${first}`), ` ${name}`);
    const details = element("details", { id: `source-${key}` }, element("summary", {}, title), where, code);
    details.open = place.dataset.open !== undefined;
    place.append(details);
  }
}
