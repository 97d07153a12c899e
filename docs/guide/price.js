// Cost of a million tokens, and the break-even with the price of an API.
import { element } from "./guide.js";

/** price an hour, tokens a second while it works, share of the hours in which it works, API price of a million tokens */
export function cost({ price, rate, utilisation, api }) {
  const million = (price / (rate * utilisation) / 3600) * 1e6;
  const needed = (price / api / 3600) * 1e6;
  return { million, cheaper: million < api, breakEvenRate: needed, breakEvenUtilisation: needed / rate };
}

export async function draw(place) {
  const given = { price: 2.5, rate: 2000, utilisation: 0.5, api: 0.6 };
  const labels = { price: "Price of an hour", rate: "Tokens a second at full load", utilisation: "Utilisation (0 to 1)", api: "An API's price of a million tokens" };
  const result = element("p", { "aria-live": "polite", "data-counter": "cost" });
  const show = () => {
    if (Object.values(given).some((v) => !(v > 0)) || given.utilisation > 1) { result.textContent = "All four must be above 0, and the utilisation at most 1."; return; }
    const { million, cheaper, breakEvenRate, breakEvenUtilisation } = cost(given);
    const reach = breakEvenUtilisation <= 1 ? `${(100 * breakEvenUtilisation).toFixed(1)} % utilisation` : "more than the machine can serve";
    result.textContent = `${million.toPrecision(4)} a million tokens: ${cheaper ? "less" : "not less"} than the API. Break-even at ${breakEvenRate.toFixed(1)} tokens a second on average (${reach}).`;
  };
  place.append(...Object.entries(labels).map(([name, label]) => element("p", {}, element("label", {}, `${label} `,
    element("input", { type: "number", step: "any", min: 0, value: given[name], "data-name": name, oninput: (event) => { given[name] = Number(event.target.value); show(); } })))), result);
  show();
}
