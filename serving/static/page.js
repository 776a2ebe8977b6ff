"use strict";
// The page of the inference server: send images, show answers, say where they come from. No library, no other host.

const model = document.documentElement.dataset.model;
const [drop, pick, answers, news, state] = ["drop", "pick", "answers", "news", "state"].map((id) => document.getElementById(id));
const AT_ONCE = 20;
const LOOK_MS = 3000;
const TINY = 96;

const percent = (share) => (share * 100).toFixed(share > 0 && share < 0.0995 ? 2 : 1) + " %";
// A version begins with the time, in UTC, at which its training ended.
const trained = (version) => version.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z.*$/, "$1-$2-$3T$4:$5:$6Z");
const day = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// What went wrong, in words: the server says it in problem JSON, a gateway before it perhaps in nothing but a status.
async function inWords(answer) {
  try {
    return (await answer.json()).detail || `The server answered with status ${answer.status}.`;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

async function predicted(file) {
  const begun = performance.now();
  let answer;
  try {
    answer = await fetch("predict", { method: "POST", body: file });
  } catch {
    throw new Error("The server does not answer, or the image is over its limit. Try again in a moment.");
  }
  if (!answer.ok) throw new Error(await inWords(answer));
  return { ...(await answer.json()), milliseconds: performance.now() - begun };
}

function bars(top) {
  const list = element("ol", "", "bars");
  for (const { label, probability } of top) {
    const bar = element("span", "", "track");
    bar.setAttribute("aria-hidden", "true");
    bar.append(element("i"));
    bar.firstChild.style.width = `${probability * 100}%`;
    const name = element("span", label, "label");
    name.title = label;
    const line = element("li");
    line.append(name, bar, element("span", percent(probability), "share"));
    list.append(line);
  }
  return list;
}

function shown({ label, probability, top, model_version, dataset_version, milliseconds }) {
  const best = element("p", label + " ", "best");
  best.append(element("small", percent(probability)));
  const by = `${model_version} · trained on dataset ${dataset_version} · ${Math.round(milliseconds)} ms`;
  return [best, bars(top), element("p", by, "by")];
}

function picture(file) {
  const [figure, image] = [element("figure"), element("img")];
  image.alt = "";
  image.src = URL.createObjectURL(file);
  image.addEventListener("load", () => {
    image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= TINY);
    URL.revokeObjectURL(image.src);
  });
  image.addEventListener("error", () => image.remove()); // a format that browsers do not show
  figure.append(image, element("figcaption", file.name || "pasted image"));
  return figure;
}

async function ask(file) {
  const [card, said] = [element("li"), element("div")];
  said.append(element("p", "Looking …", "waiting"));
  card.append(picture(file), said);
  answers.prepend(card);
  try {
    const answer = await predicted(file);
    said.replaceChildren(...shown(answer));
    news.textContent = `${file.name || "The image"}: ${answer.label}, ${percent(answer.probability)}`;
  } catch (problem) {
    said.replaceChildren(element("p", problem.message, "problem"));
    news.textContent = `${file.name || "The image"}: ${problem.message}`;
  }
}

async function askAll(files) {
  for (const file of [...files].slice(0, AT_ONCE)) await ask(file);
  if (files.length > AT_ONCE) news.textContent = `Only the first ${AT_ONCE} images were sent.`;
}

function origin(status) {
  const lines = [
    ["Model version", status.version],
    ["Dataset version", status.dataset && `${status.dataset} ${status.dataset_version}`],
    ["Accuracy on test images", status.metrics && "accuracy" in status.metrics && percent(status.metrics.accuracy)],
    ["Trained", status.version && day(trained(status.version))],
    ["Registered", status.created_at && day(status.created_at)],
    ["Live since", status.live_since && day(status.live_since)],
    ["Classes", status.classes && status.classes.length],
  ].filter(([, value]) => value);
  const list = document.getElementById("origin");
  list.replaceChildren(
    ...(lines.length ? lines : [["Model version", "none yet"]]).map(([name, value]) => {
      const line = element("div");
      line.append(element("dt", name), element("dd", value));
      return line;
    }),
  );
  const report = document.getElementById("report");
  report.hidden = !status.report;
  if (status.report) report.href = status.report.replace(/^\//, "");
}

function inShort(status) {
  const why = status.swap_error ? ` ${status.swap_error.reason}` : "";
  if (!status.version) return `No version of this model is live yet; this page looks again by itself.${why}`;
  if (status.swap_error) return `This version goes on answering, but something is wrong:${why}`;
  return "Live and ready.";
}

async function look() {
  let [text, wrong] = ["The server does not answer; this page looks again by itself.", true];
  try {
    const answer = await fetch(`v2/models/${encodeURIComponent(model)}`, { cache: "no-store" });
    if (answer.ok) {
      const status = await answer.json();
      origin(status);
      [text, wrong] = [inShort(status), !status.version || status.swap_error !== null];
    } else {
      text = await inWords(answer);
    }
  } catch {
    // said by the text that is there already
  }
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("wrong", wrong);
  setTimeout(look, LOOK_MS);
}

pick.addEventListener("change", async () => {
  await askAll(pick.files);
  pick.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => askAll(event.clipboardData.files));
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  askAll(event.dataTransfer.files);
});
look();
