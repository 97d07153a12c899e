// Lines of the engine's source, with their numbers; components open on demand.
import { element, load } from "./guide.js";

/** The page of a source file, at a line. */
export const source = (file, line) => `source/${file}.html#L${line}`;

/** Open what the address names, or what holds it. */
function openNamed() {
  const named = document.getElementById(location.hash.slice(1));
  const details = named?.closest("details[id^=source-]");
  if (!details) return;
  details.open = true;
  named.scrollIntoView();
}

export async function draw(place) {
  const data = await load("code");
  for (const key of (place.dataset.show ?? Object.keys(data).join(" ")).split(" ")) {
    const { title, file, name, first, lines, calls } = data[key];
    if (calls) {
      place.append(element("ol", {}, ...calls.map(([what, line]) =>
        element("li", {}, element("a", { href: `#${key}-${line}` }, what), ` (line ${line})`))));
    }
    const code = element("pre", { class: "guide-code", tabindex: 0 }, ...lines.map((line, i) =>
      element("span", { id: `${key}-${first + i}` }, element("i", {}, `${first + i}`), `${line}\n`)));
    const where = element("p", {}, element("a", { href: source(file, first) }, element("code", {}, `${file}:${first}`)), ` ${name}`);
    const details = element("details", { id: `source-${key}` }, element("summary", {}, title), where, code);
    details.open = place.dataset.open !== undefined;
    place.append(details);
  }
  addEventListener("hashchange", openNamed);
  openNamed();
}
