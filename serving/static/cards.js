// One card for each image: what was sent, and what came back.

import { element, milliseconds, percent } from "./words.js";

const TINY = 96; // such images are shown with their pixels

let number = 0;

function picture(file, name) {
  const [figure, image] = [element("figure"), element("img")];
  const caption = element("figcaption", name);
  image.alt = `Preview of ${name}`;
  image.src = URL.createObjectURL(file);
  image.addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    image.classList.toggle("tiny", Math.max(width, height) <= TINY);
    caption.append(element("span", `${width} × ${height}`, "size"));
    URL.revokeObjectURL(image.src);
  });
  image.addEventListener("error", () => {
    URL.revokeObjectURL(image.src);
    image.replaceWith(element("p", "No preview", "blank")); // no image, or a format that browsers do not show
  });
  figure.append(image, caption);
  return figure;
}

function bars(top, best) {
  const list = element("ol", "", "bars");
  list.setAttribute("aria-label", "Most probable classes");
  top.forEach(({ label, probability }, rank) => {
    const name = element("span", label, "label");
    name.id = `${best.id}-${rank}`;
    name.title = label;
    const meter = element("meter", percent(probability));
    meter.value = probability;
    meter.setAttribute("aria-labelledby", name.id);
    meter.setAttribute("aria-valuetext", percent(probability));
    const [line, share] = [element("li"), element("span", percent(probability), "share")];
    share.setAttribute("aria-hidden", "true"); // the meter says it
    line.append(name, meter, share);
    list.append(line);
  });
  return list;
}

function facts({ model_version, dataset_version, took, inServer }) {
  const spent = inServer === null ? "" : `, ${milliseconds(inServer)} of it in the server`;
  const list = element("ul", "", "facts");
  list.append(
    element("li", `${milliseconds(took)}${spent}`),
    element("li", `model ${model_version}`),
    element("li", `trained on dataset ${dataset_version}`),
  );
  return list;
}

// A card that waits for its answer; `again` is called where a person wants to ask once more.
export function card(file, again) {
  const name = file.name || "pasted image";
  const [node, said, title] = [element("li"), element("div", "", "said"), element("h3", "", "best")];
  title.id = `answer-${++number}`;
  node.setAttribute("aria-labelledby", title.id);
  node.append(picture(file, name), said);

  const show = (text, ...rest) => {
    title.textContent = text;
    title.className = "best";
    node.classList.remove("refused", "waits");
    said.replaceChildren(title, ...rest);
  };
  return {
    node,
    name,
    wait(why = "") {
      show("Looking …", element("p", why, "hint"));
      node.classList.add("waits");
    },
    answer(answer) {
      show(`${answer.label} `, bars(answer.top, title), facts(answer));
      title.append(element("small", percent(answer.probability)));
    },
    mark(text) {
      title.append(" ", element("span", text, "badge"));
    },
    refuse(problem) {
      show("No answer", element("p", problem.message, "problem"));
      node.classList.add("refused");
      if (!problem.later) return;
      if (problem.request) said.append(element("p", `request ${problem.request}`, "hint"));
      const button = element("button", "Ask again", "quiet");
      button.type = "button";
      button.setAttribute("aria-describedby", title.id);
      button.addEventListener("click", again);
      said.append(button);
    },
  };
}
