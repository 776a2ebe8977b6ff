// What the page asks this server, with the API key where it wants one; what goes wrong, in words.

import { another, held } from "./key.js";

const TRIES = 4;
const AWAY = "The server does not answer.";

export const model = document.documentElement.dataset.model;

// A sentence for a person; `later` tells whether the same question may be answered another time.
export class Problem extends Error {
  constructor(sentence, { later = false, request = null } = {}) {
    super(sentence);
    Object.assign(this, { later, request });
  }
}

// The answer, of whatever status. `patient`: who was asked for the key before and left is not asked again.
export async function ask(path, options = {}, { patient = false } = {}) {
  for (;;) {
    const key = held();
    const answer = await fetch(path, { ...options, headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (answer.status !== 401 || !(await another(key, patient))) return answer;
  }
}

// The server says what was wrong in problem JSON; a gateway before it perhaps in nothing but a status.
export async function inWords(answer) {
  const said = await answer.json().catch(() => null);
  return said?.detail || `The server answered with status ${answer.status}.`;
}

// What the model says of an image, and how long that took. A server that is busy is asked again when it says so;
// `busy` is told why, and for how many seconds.
export async function predicted(file, { signal, busy }) {
  await readable(file);
  for (let tries = 1; ; tries++) {
    const begun = performance.now();
    const answer = await sent(file, signal);
    if (answer.ok) {
      const said = await answer.json();
      return { ...said, took: performance.now() - begun, inServer: inServer(answer) };
    }
    const [sentence, wait] = [await inWords(answer), Number(answer.headers.get("Retry-After"))];
    if (!wait || tries === TRIES) {
      const later = answer.status === 401 || answer.status === 429 || answer.status >= 500;
      throw new Problem(sentence, { later, request: answer.headers.get("X-Request-Id") });
    }
    busy(sentence, wait);
    await pause(wait * 1000, signal);
  }
}

async function sent(file, signal) {
  try {
    return await ask("predict", { method: "POST", body: file, signal });
  } catch (error) {
    throw signal.aborted ? error : new Problem(AWAY, { later: true });
  }
}

// The browser reports a file that is gone, or a folder, as it reports a network that is gone.
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("The browser cannot read this file.");
  }
}

// Milliseconds, where the answer tells them: the stage called "total", or all stages together.
function inServer(answer) {
  const stages = [...(answer.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  const total = stages.find(([, name]) => name === "total");
  return stages.length ? (total ? [total] : stages).reduce((sum, [, , time]) => sum + Number(time), 0) : null;
}

function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
