// Figures, times and elements as all parts of the page write them.

export const percent = (share) => (share * 100).toFixed(share > 0 && share < 0.0995 ? 2 : 1) + " %";
export const day = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
export const milliseconds = (time) => (time < 10 ? time.toFixed(1) : String(Math.round(time))) + " ms";

// A version begins with the time, in UTC, at which its training ended.
export const trained = (version) =>
  day(version.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z.*$/, "$1-$2-$3T$4:$5:$6Z"));

export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A line of a list of facts.
export function fact(name, value) {
  const [line, told] = [element("div"), element("dd")];
  told.append(value);
  line.append(element("dt", name), told);
  return line;
}
