// What is live, where it comes from, and whether the server answers at all; looked at again and again.

import { held } from "./key.js";
import { ask, inWords, model } from "./server.js";
import { day, element, fact, percent, trained } from "./words.js";

const CALM_MS = 10_000;
const ANXIOUS_MS = 2_000;
const LISTED = 20;
const AWAY = "The server does not answer; this page looks again by itself.";

const [state, list, report, others, versions] = ["state", "origin", "report", "others", "versions"].map((id) =>
  document.getElementById(id),
);
const path = `v2/models/${encodeURIComponent(model)}`;

let [timer, shown] = [null, null];

// What the page knows of a version that answered: "live", "challenger", or nothing yet.
export function role(version) {
  if (version === shown?.version) return "live";
  return version === shown?.challenger ? "challenger" : null;
}

function inShort(status) {
  const why = status.swap_error ? ` ${status.swap_error.reason}` : "";
  if (!status.version) return `No version of this model is live yet; this page looks again by itself.${why}`;
  if (status.swap_error) return `This version goes on answering, but something is wrong:${why}`;
  return status.ready ? "Live and ready." : "About to end; another server takes its place.";
}

function facts(status) {
  const lines = [
    ["Model version", status.version],
    ["Dataset version", status.dataset && `${status.dataset} ${status.dataset_version}`],
    ["Accuracy on test images", status.metrics?.accuracy !== undefined && percent(status.metrics.accuracy)],
    ["Calibration error", status.metrics?.ece !== undefined && percent(status.metrics.ece)],
    ["Classes", status.classes && classes(status.classes)],
    ["Trained", status.version && trained(status.version)],
    ["Registered", status.created_at && day(status.created_at)],
    ["Live since", status.live_since && day(status.live_since)],
    ["Challenger", status.canary && challenged(status.canary)],
  ].filter(([, value]) => value);
  return lines.length ? lines : [["Model version", "none yet"]];
}

function challenged({ challenger, share, mode }) {
  const what = mode === "shadow" ? "sees a copy of the requests of" : "answers";
  return `${challenger} ${what} ${Number((share * 100).toFixed(2))} % of the callers`;
}

function classes(names) {
  const [all, list] = [element("details"), element("ul", "", "classes")];
  list.append(...names.map((name) => element("li", name)));
  all.append(element("summary", String(names.length)), list);
  return all;
}

function show(status) {
  const same = JSON.stringify({ ...status, processes: [] });
  if (same === shown?.same) return; // what is open stays open, and nobody is read the same twice
  shown = { version: status.version, challenger: status.canary?.challenger, same };
  const open = list.querySelector("details")?.open;
  list.replaceChildren(...facts(status).map(([name, value]) => fact(name, value)));
  if (open) list.querySelector("details")?.setAttribute("open", "");
  report.hidden = !status.report;
  if (status.report) report.href = relative(status.report);
  others.hidden = false;
  if (others.open) listAll();
}

// The page may be served below a path of a gateway's.
const relative = (path) => path.replace(/^\//, "");

function registered({ version, live, metrics, created_at, report }) {
  const [line, link] = [element("li"), element("a", version)];
  link.href = relative(report);
  const accuracy = metrics.accuracy === undefined ? "" : `${percent(metrics.accuracy)} accurate, `;
  line.append(link, ...(live ? [" ", element("span", "live", "badge")] : []));
  line.append(element("span", `${accuracy}registered ${day(created_at)}`, "hint"));
  return line;
}

async function listAll() {
  try {
    const answer = await ask(`${path}/versions?limit=${LISTED}`, {}, { patient: true });
    if (!answer.ok) throw new Error(await inWords(answer));
    versions.replaceChildren(...(await answer.json()).versions.map(registered));
  } catch (problem) {
    versions.replaceChildren(element("li", problem.message, "problem"));
  }
}

function say(text, kind) {
  if (state.textContent !== text) state.textContent = text;
  state.className = `state ${kind}`;
}

async function looked() {
  const answer = await ask(path, { cache: "no-store" }, { patient: true });
  if (!answer.ok) return say(await inWords(answer), "wrong");
  const status = await answer.json();
  show(status);
  say(inShort(status), !status.version || status.swap_error ? "wrong" : "well");
}

// Look now, and then from time to time: more often while something is wrong, and not while nobody sees the page, so
// that it keeps no server awake.
export async function look() {
  clearTimeout(timer);
  try {
    await looked();
  } catch {
    say(AWAY, "wrong");
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, state.classList.contains("well") ? CALM_MS : ANXIOUS_MS);
}

// A browser follows a link without the API key; where there is one, the report is fetched with it and saved as a file.
// (Shown from here it would have this page's policy, and stay without its style.)
async function save(event) {
  const link = event.target.closest('a[href$="/report"]');
  if (!link || !held()) return;
  event.preventDefault();
  const answer = await ask(link.href).catch(() => null);
  if (!answer?.ok) return say(answer ? await inWords(answer) : AWAY, "wrong");
  const file = element("a");
  file.href = URL.createObjectURL(await answer.blob());
  file.download = `${model} ${link.href.split("/").at(-2)}.html`;
  file.click();
  URL.revokeObjectURL(file.href);
}

document.getElementById("lineage").addEventListener("click", save);
others.addEventListener("toggle", () => others.open && listAll());
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
document.addEventListener("unlocked", look);
