// One slider with its name and value, filled from a resting point outwards.

import { bdi, el } from "./dom.js";

let count = 0;

/** options: {text, title, min, max, step, rest: where the fill starts, value, show(number): text,
 *  onInput(number), exact: with a number field of these bounds {min, max, step}}.
 *  Returns {element, set(number)}. */
export function slider(options) {
  const { text, min, max, step, rest, show, onInput, exact } = options;
  const id = `slider-${(count += 1)}`;
  const range = el("input", { type: "range", id, min, max, step, class: "range" });
  range.classList.add(rest === min ? "from-start" : "two-sided");
  const value = exact
    ? el("input", { type: "number", class: "exact", "aria-label": `${text}, exact`, ...exact })
    : el("output", { for: id, class: "value" });
  const element = el(
    "div",
    { class: "slider" },
    el("label", { for: id, class: "name", title: options.title ?? text }, bdi(text)),
    range,
    value,
  );

  function paint(number) {
    const share = (at) => (max > min ? Math.min(1, Math.max(0, (at - min) / (max - min))) : 0);
    const from = share(rest);
    const to = share(number);
    range.style.setProperty("--from", Math.min(from, to));
    range.style.setProperty("--to", Math.max(from, to));
    range.classList.toggle("away", number < rest);
    element.classList.toggle("at-rest", number === rest);
    range.setAttribute("aria-valuetext", show(number));
  }

  function set(number) {
    range.value = number;
    if (exact) value.value = Number(Number(number).toPrecision(6));
    else value.textContent = show(number);
    paint(Number(number));
  }

  range.addEventListener("input", () => {
    set(Number(range.value));
    onInput(Number(range.value));
  });
  if (exact) {
    value.addEventListener("change", () => {
      const number = value.value === "" || !value.checkValidity() ? Number(range.value) : Number(value.value);
      set(number);
      onInput(number);
    });
  } else {
    range.addEventListener("dblclick", () => {
      set(rest);
      onInput(rest);
    });
  }
  set(options.value);
  return { element, set };
}
