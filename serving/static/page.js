// The page of the inference server: choose, drop or paste images, and see what the model says. No library, no other host.

import { card } from "./cards.js";
import { filesIn } from "./files.js";
import { look, role } from "./origin.js";
import { predicted } from "./server.js";
import { counted, percent } from "./words.js";

const AT_ONCE = 4; // the others wait their turn, however many were dropped

const [drop, pick, notice, answers, news, tally, done, count] = [
  "drop", "pick", "notice", "answers", "news", "tally", "done", "count",
].map((id) => document.getElementById(id));

let [waiting, running, stop] = [[], 0, new AbortController()];

// Of images that come together the first stands first; what comes later stands above.
function take(files) {
  notice.textContent = files.length ? "" : "There was no image file in that.";
  const group = { size: files.length, left: files.length, refused: 0, last: null };
  waiting.push(...files.map((file) => ({ file, group })));
  proceed();
}

function proceed() {
  while (running < AT_ONCE && waiting.length) {
    const { file, group } = waiting.shift();
    const made = card(file, () => answer(made, file, { size: 1, left: 1, refused: 0 }));
    if (group.last) group.last.after(made.node);
    else answers.prepend(made.node);
    group.last = made.node;
    answer(made, file, group);
  }
  tell();
}

async function answer(made, file, group) {
  const { signal } = stop;
  running += 1;
  made.wait();
  tell();
  let text;
  try {
    const busy = (why, seconds) => made.wait(`${why} Asking again in ${counted(seconds, "second")}.`);
    const said = await predicted(file, { signal, busy });
    made.answer(said);
    text = `${said.label}, ${percent(said.probability)}`;
    if (!role(said.model_version)) await look(); // something new is live
    if (role(said.model_version) === "challenger") made.mark("answered by the challenger");
  } catch (problem) {
    made.refuse(problem);
    group.refused += 1;
    text = `no answer. ${problem.message}`;
    if (problem.later) look(); // the server is away, or has no model
  }
  running -= 1;
  group.left -= 1;
  if (signal.aborted) return;
  if (!group.left) news.textContent = group.size === 1 ? `${made.name}: ${text}` : inShort(group);
  proceed();
}

function inShort({ size, left, refused }) {
  const without = refused ? `, ${refused} without an answer` : "";
  return `${size - left - refused} of ${counted(size, "image")} answered${without}`;
}

// All cards there are, and the images that have none yet.
function tell() {
  const [cards, waits] = [answers.childElementCount, answers.querySelectorAll(".waits").length];
  const all = { size: cards + waiting.length, left: waits + waiting.length };
  tally.hidden = !all.size;
  done.hidden = !all.left;
  [done.max, done.value] = [all.size || 1, all.size - all.left];
  count.textContent = inShort({ ...all, refused: answers.querySelectorAll(".refused").length });
}

function clear() {
  stop.abort();
  [waiting, stop] = [[], new AbortController()];
  answers.replaceChildren();
  notice.textContent = "";
  news.textContent = "The answers are cleared.";
  tell();
  pick.focus();
}

for (const input of [pick, document.getElementById("camera")]) {
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
}
document.addEventListener("paste", (event) => {
  if (!event.target.closest?.("dialog")) take([...event.clipboardData.files]);
});
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(await filesIn(event.dataTransfer));
});
document.getElementById("clear").addEventListener("click", clear);
look();
