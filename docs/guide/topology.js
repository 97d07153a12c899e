// Processes of a deployment, by the formula on the page.
import { element } from "./guide.js";

/** Numbers of processes. API servers default to the replicas. */
export function processes({ tp, pp, dp, servers }) {
  const counts = { launcher: 1, servers: servers || dp, cores: dp, workers: tp * pp * dp, coordinator: dp > 1 ? 1 : 0 };
  // One rank computes in its engine core: there is no worker of its own.
  if (tp * pp === 1) counts.workers = 0;
  return { ...counts, total: Object.values(counts).reduce((a, b) => a + b) };
}

export async function draw(place) {
  const given = { tp: 2, pp: 1, dp: 4, servers: 0 };
  const labels = { tp: "Tensor parallel", pp: "Pipeline parallel", dp: "Data parallel", servers: "API servers (0: as many as replicas)" };
  const result = element("p", { "aria-live": "polite", "data-counter": "processes" });
  const show = () => {
    const n = processes(given);
    result.textContent = `${n.total} processes: ${n.launcher} launcher, ${n.servers} API servers, ${n.cores} engine cores, ${n.workers} workers, ${n.coordinator} coordinator of replicas.`;
  };
  const inputs = Object.entries(labels).map(([name, label]) => element("p", {}, element("label", {}, `${label} `,
    element("input", { type: "number", min: name === "servers" ? 0 : 1, max: 64, value: given[name], "data-name": name,
      oninput: (event) => { given[name] = Math.max(Number(event.target.min), Math.floor(Number(event.target.value)) || 0); show(); } }))));
  place.append(...inputs, result);
  show();
}
