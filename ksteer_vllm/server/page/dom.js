// Elements without strings of markup: whatever text comes from a server or a user is text.

/** An element. attributes: name -> value (true: present, false or null: absent; functions: listeners).
 *  children: nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Text of unknown direction, kept from changing the order of what stands beside it. */
export const bdi = (text) => el("bdi", {}, text);

/** The options of a <select>: [value, text] pairs. */
export function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (chosen !== undefined) select.value = chosen;
}

/** A number without noise: at most 4 significant digits. */
export const short = (number) => String(Number(Number(number).toPrecision(4)));

export const percent = (share) => (share === null || share === undefined ? "n/a" : `${(100 * share).toFixed(share > 0.001 && share < 0.1 ? 1 : 0)}%`);
