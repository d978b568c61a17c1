// Per-token label probabilities before and after steering, from the report of a response.

import { bdi, el, fillSelect, percent, short } from "./dom.js";

const MOST_CELLS = 2000;
const SHIFT = "";
/** The choice that shows how far tokens were moved, also for methods without probabilities. */

const shown = (text) => (text === undefined ? "·" : (text.trim() || text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +$/, "␣") || "∅");

const mean = (numbers) => {
  const known = numbers.filter((number) => typeof number === "number");
  return known.length ? known.reduce((sum, number) => sum + number, 0) / known.length : null;
};

/** The strip of one report. tokens: the texts of the generated tokens, by generation index. */
export function strip(report, tokens) {
  const parts = report.edits.flatMap((edit) => edit.layers.map((layer) => ({ ...layer, edit })));
  const where = el("select", { "aria-label": "Edit and layer" });
  fillSelect(where, parts.map((part, index) => [index, `${part.edit.probe} · ${part.edit.method} · layer ${part.layer}`]), 0);
  const moved = report.mean_shift === null ? "" : `, moved by ${percent(report.mean_shift)} of their length on average`;
  const labels = el("div", { class: "strip-labels" });
  const cells = el("div", { class: "cells", role: "group" });
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const table = el("details", { class: "as-table" }, el("summary", {}, "As a table"));
  const view = { part: parts[0], label: SHIFT, tokens, labels, cells, readout, table };
  where.onchange = () => choosePart(view, parts[Number(where.value)]);
  table.ontoggle = () => fillTable(view);
  if (parts.length) choosePart(view, parts[0]);
  return el(
    "details",
    { class: "strip", open: true },
    el("summary", {}, el("span", { class: "strip-title" }, "Token by token"), el("span", { class: "muted" }, `${report.tokens_steered} tokens steered${moved}`)),
    el(
      "div",
      { class: "strip-body" },
      el("div", { class: "strip-side" }, parts.length > 1 ? where : null, labels),
      el("div", { class: "strip-main" }, cells, readout, table),
    ),
  );
}

function choosePart(view, part) {
  const records = part.tokens.filter((token) => token.part === "generation");
  Object.assign(view, { part, records: records.slice(0, MOST_CELLS), left: part.tokens.length - Math.min(records.length, MOST_CELLS) });
  const names = part.labels ?? [];
  const changes = names.map((name) => ({
    name,
    before: mean(view.records.map((token) => token.before?.[name])),
    after: mean(view.records.map((token) => token.after?.[name])),
  }));
  const gain = ({ before, after }) => (after ?? 0) - (before ?? 0);
  if (!names.includes(view.label)) view.label = changes.length ? changes.reduce((best, one) => (gain(one) > gain(best) ? one : best)).name : SHIFT;
  const group = `strip-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  view.labels.replaceChildren(
    el(
      "fieldset",
      { class: "bare" },
      el("legend", { class: "muted" }, names.length ? "Label, mean before and after" : "This method has no probabilities"),
      ...changes.map((change) => labelRow(view, group, change)),
      shiftRow(view, group),
    ),
  );
  draw(view);
}

function radio(view, group, value) {
  const onChange = () => {
    view.label = value;
    draw(view);
  };
  return el("input", { type: "radio", name: group, value, checked: view.label === value, change: onChange });
}

function labelRow(view, group, { name, before, after }) {
  const bar = el("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--before", before ?? 0);
  bar.style.setProperty("--after", after ?? 0);
  const numbers = el("span", { class: "numbers" }, `${percent(before)} → ${percent(after)}`);
  return el("label", { class: "strip-label" }, radio(view, group, name), el("span", { class: "name", title: name }, bdi(name)), bar, numbers);
}

function shiftRow(view, group) {
  const shifts = view.records.map((token) => token.shift);
  const text = el("span", { class: "name wide" }, "distance moved");
  return el("label", { class: "strip-label" }, radio(view, group, SHIFT), text, el("span", { class: "numbers" }, percent(mean(shifts))));
}

/** The text of a record: what it says of the chosen label. */
function reading(view, record) {
  const moved = `moved ${percent(record.shift)}${record.steps === null ? "" : `, ${record.steps} ${record.steps === 1 ? "step" : "steps"}`}`;
  if (view.label === SHIFT) return moved;
  return `${view.label} ${percent(record.before?.[view.label])} before, ${percent(record.after?.[view.label])} after; ${moved}`;
}

function draw(view) {
  const { cells, records, readout, label } = view;
  const largest = Math.max(1e-9, ...records.map((record) => record.shift ?? 0));
  const share = (record, side) => (label === SHIFT ? (side === "after" ? (record.shift ?? 0) / largest : 0) : (record[side]?.[label] ?? 0));
  const say = (record) => readout.replaceChildren(`${record.index + 1} `, el("strong", {}, bdi(shown(view.tokens[record.index]))), ` ${reading(view, record)}`);
  cells.setAttribute("aria-label", label === SHIFT ? "Tokens by how far they were moved" : `Tokens by the probability of ${label}`);
  cells.replaceChildren(
    ...records.map((record, position) => {
      const text = view.tokens[record.index];
      const cell = el("button", {
        type: "button",
        class: "cell",
        tabindex: position ? -1 : 0,
        title: reading(view, record),
        "aria-label": `${text ?? `token ${record.index + 1}`}: ${reading(view, record)}`,
        focus: () => say(record),
        click: () => say(record),
        mouseenter: () => say(record),
      }, bdi(shown(text)));
      cell.style.setProperty("--before", share(record, "before"));
      cell.style.setProperty("--after", share(record, "after"));
      Object.assign(cell.dataset, { index: record.index, before: record.before?.[label] ?? "", after: record.after?.[label] ?? "" });
      return cell;
    }),
  );
  cells.onkeydown = (event) => walk(event, cells);
  const rest = view.left ? ` ${view.left} more records (prompt tokens, or beyond the first ${MOST_CELLS}) are not shown.` : "";
  readout.textContent = records.length ? `Upper band: before; fill: after. Use the arrow keys to move between tokens.${rest}` : `No generated token was steered here.${rest}`;
  fillTable(view);
}

/** Arrow keys move the focus from cell to cell; the strip is one stop of the tab key. */
function walk(event, cells) {
  const all = [...cells.children];
  const at = all.indexOf(document.activeElement);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined || !all[next]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[next].tabIndex = 0;
  all[next].focus();
}

/** The same numbers as text, once somebody opens it. */
function fillTable(view) {
  if (!view.table.open) return;
  view.table.querySelector("table")?.remove();
  const head = ["", "token", ...(view.label === SHIFT ? [] : ["before", "after"]), "moved", "steps"];
  const number = (value) => (value === null || value === undefined ? "" : short(value));
  const rows = view.records.map((record) => {
    const sides = view.label === SHIFT ? [] : [number(record.before?.[view.label]), number(record.after?.[view.label])];
    const texts = [shown(view.tokens[record.index]), ...sides, number(record.shift), record.steps ?? ""];
    return el("tr", {}, el("th", { scope: "row" }, String(record.index + 1)), ...texts.map((text) => el("td", {}, bdi(String(text)))));
  });
  const caption = view.label === SHIFT ? "How far each token was moved" : `Probability of ${view.label}`;
  view.table.append(
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...rows)),
  );
}
