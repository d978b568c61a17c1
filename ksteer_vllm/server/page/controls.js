// The panel: presets, probe, method, label sliders, strength, steps, layers -> the `ksteer` field.

import { bdi, byId, el, fillSelect, short } from "./dom.js";
import { slider } from "./slider.js";
import {
  defaultAlpha, defaultEdit, defaultLayers, defaultSteps, describe, fieldsOf, hiddenFields, layerChoices, ownSpec,
  presetRequest, settingsOf,
} from "./spec.js";

const MANY_LABELS = 16;
const SLIDER_STEPS = 32;
const OWN = "";

export class Controls {
  /** server: {info, cards: name -> card, presets: name -> spec}. onChange(): after every change. */
  constructor(server, onChange) {
    Object.assign(this, server);
    this.onChange = onChange;
    this.preset = OWN;
    this.filled = null;
    const first = Object.keys(this.cards)[0];
    this.settings = first ? this.fresh(first) : null;
    byId("own").hidden = !first;
    byId("preset").onchange = () => this.choosePreset(byId("preset").value);
    byId("probe").onchange = () => this.leave(this.fresh(byId("probe").value));
    byId("method").onchange = () => this.leave({ ...this.settings, method: byId("method").value, alpha: null });
    byId("reset").onclick = () => this.change({ weights: new Map(), values: new Map() }, true);
    byId("filter").oninput = () => this.filter();
    const stars = (name) => (name === this.info.default ? `${name} (default)` : name);
    const names = Object.keys(this.presets);
    const none = names.length ? "None: your own settings" : "No presets on this server";
    fillSelect(byId("preset"), [[OWN, none], ...names.map((name) => [name, stars(name)])], OWN);
    byId("preset").disabled = !names.length;
    fillSelect(byId("probe"), Object.keys(this.cards).map((name) => [name, name]));
    if (this.info.default in this.presets) this.choosePreset(this.info.default);
    else this.draw();
  }

  fresh(probe) {
    const method = this.cards[probe].methods[0];
    return { probe, method, weights: new Map(), values: new Map(), alpha: null, steps: Math.min(defaultSteps(this.cards[probe], method), this.mostSteps), layers: null };
  }

  get mostSteps() {
    return this.info.limits?.max_steps ?? 256;
  }

  get takes() {
    return fieldsOf(this.info, this.card, this.settings.method);
  }

  /** The strength of a request that gives none, with the labels as they are. */
  get usualAlpha() {
    return defaultAlpha(this.card, this.settings.method, this.settings.weights);
  }

  get card() {
    return this.cards[this.settings.probe];
  }

  get isStack() {
    return Boolean(this.preset && (this.presets[this.preset].stack || !this.cards[this.presets[this.preset].probe]));
  }

  /** The `ksteer` field without `report`; false: not steered. */
  request() {
    if (this.isStack) return { preset: this.preset };
    const spec = this.settings && ownSpec(this.effective(), this.info, this.card);
    if (!spec) return false;
    return (this.preset && presetRequest(this.preset, this.filled, spec, this.card)) || spec;
  }

  /** The settings with the strength that a probe without a default requires. */
  effective() {
    const alpha = this.settings.alpha ?? (this.usualAlpha === null ? 1 : null);
    return { ...this.settings, alpha };
  }

  choosePreset(name) {
    this.preset = name;
    byId("preset").value = name;
    if (name && !this.isStack) {
      const spec = this.presets[name];
      this.settings = settingsOf(spec, this.cards[spec.probe]);
      this.filled = ownSpec(this.effective(), this.info, this.card);
      if (!this.filled) this.preset = byId("preset").value = OWN;
    }
    this.draw();
  }

  /** Switch to settings that belong to no preset. */
  leave(settings) {
    this.preset = byId("preset").value = OWN;
    this.settings = settings;
    this.draw();
  }

  change(fields, redraw = false) {
    this.settings = { ...this.settings, ...fields };
    if (redraw) this.draw();
    else this.tell();
  }

  tell() {
    const request = this.request();
    byId("panel-summary").textContent = request ? describe(request) : "off";
    this.onChange(request);
  }

  draw() {
    byId("own").disabled = this.isStack;
    this.drawPresetNote();
    if (this.settings) {
      const { methods } = this.card;
      byId("probe").value = this.settings.probe;
      fillSelect(byId("method"), methods.map((name) => [name, name]), this.settings.method);
      byId("method").disabled = methods.length < 2;
      this.drawLabels();
      this.drawStrength();
      this.drawLayers();
    }
    this.tell();
  }

  drawPresetNote() {
    const note = byId("preset-note");
    const spec = this.presets[this.preset];
    const hidden = spec && !this.isStack ? hiddenFields(spec) : "";
    if (this.isStack) {
      const edits = spec.stack ?? [];
      note.textContent = `A stack of ${edits.length} edits, sent by name: ${edits.map((edit) => describe(plainSides(edit))).join("; ")}`;
    } else {
      const own = this.settings && !this.preset ? hiddenFields(defaultEdit(this.card, this.settings.method)) : "";
      note.textContent = hidden ? `Also set by this preset: ${hidden}` : own && `Also set by this probe: ${own}`;
    }
    note.hidden = !note.textContent;
  }

  drawLabels() {
    const { takes } = this;
    const values = takes.has("values");
    const min = takes.has("avoid") ? -1 : 0;
    const max = takes.has("target") ? 1 : 0;
    byId("labels").replaceChildren(
      ...this.card.labels.map((label) => (values ? this.valueField(label) : this.labelSlider(label, min, max))),
    );
    byId("labels-scale").hidden = values || min === max;
    byId("labels-scale").firstElementChild.hidden = min === 0;
    byId("labels-scale").lastElementChild.hidden = max === 0;
    byId("labels-hint").textContent = values
      ? "The activation to set a feature to; leave it empty to leave the feature alone."
      : "Weights are relative to one another; the strength sets how far to move.";
    byId("filter").hidden = this.card.labels.length < MANY_LABELS;
    byId("filter").value = "";
  }

  labelSlider(label, min, max) {
    const show = (weight) => (weight === 0 ? "0" : `${weight > 0 ? "+" : "−"}${Math.abs(weight).toFixed(2)}`);
    const weight = Math.min(max, Math.max(min, this.settings.weights.get(label) ?? 0));
    const onInput = (number) => {
      this.change({ weights: new Map(this.settings.weights).set(label, number) });
      if (this.settings.alpha === null) this.drawStrength(); // every label may have its own
    };
    this.settings.weights.set(label, weight);
    const { element } = slider({ text: label, min, max, step: 0.05, rest: 0, value: weight, show, onInput });
    element.dataset.label = label;
    return element;
  }

  valueField(label) {
    const onInput = (event) => {
      const values = new Map(this.settings.values);
      if (event.target.value === "") values.delete(label);
      else values.set(label, Number(event.target.value));
      this.change({ values });
    };
    const field = el("input", { type: "number", step: "any", class: "exact", value: this.settings.values.get(label), input: onInput });
    return el("label", { class: "slider value-field", "data-label": label }, el("span", { class: "name", title: label }, bdi(label)), field);
  }

  filter() {
    const wanted = byId("filter").value.toLowerCase();
    for (const row of byId("labels").children) row.hidden = !row.dataset.label.toLowerCase().includes(wanted);
  }

  drawStrength() {
    const { takes } = this;
    const fields = [];
    if (takes.has("alpha")) {
      const usual = this.usualAlpha ?? 1;
      const value = this.settings.alpha ?? usual;
      const max = Math.max(3 * Math.abs(usual) || 3, Math.abs(value));
      const onInput = (alpha) => this.change({ alpha: alpha === this.usualAlpha ? null : alpha });
      fields.push(slider({
        text: "Strength", title: `alpha; default ${short(usual)}`, min: 0, max, step: max / 60, rest: 0, value,
        show: (number) => `alpha ${short(number)}`, onInput, exact: { step: "any", inputmode: "decimal" },
      }).element);
    }
    if (takes.has("num_steps")) {
      const most = this.mostSteps;
      fields.push(slider({
        text: "Steps", title: `gradient steps; default ${defaultSteps(this.card, this.settings.method)}, at most ${most}`, min: 1,
        max: Math.max(Math.min(SLIDER_STEPS, most), this.settings.steps), step: 1, rest: 1, value: this.settings.steps,
        show: (number) => `${number} steps`, onInput: (steps) => this.change({ steps }),
        exact: { min: 1, max: most, step: 1, inputmode: "numeric" },
      }).element);
    }
    byId("strength-fields").replaceChildren(...fields);
    byId("strength-fields").parentElement.hidden = !fields.length;
  }

  drawLayers() {
    const usual = defaultLayers(this.card, this.settings.method);
    const chosen = () => [...byId("layers").querySelectorAll("input:checked")].map((box) => Number(box.value));
    const onChange = () => {
      const layers = chosen();
      this.change({ layers: !layers.length || String(layers) === String(usual) ? null : layers }, !layers.length);
    };
    const boxes = layerChoices(this.info, this.card).map((layer) =>
      el("label", { class: "chip" }, el("input", {
        type: "checkbox", value: layer, checked: (this.settings.layers ?? usual).includes(layer), change: onChange,
      }), String(layer)),
    );
    byId("layers").replaceChildren(...boxes);
  }
}

/** An edit of a stack with its sides as objects, however they were written. */
function plainSides(edit) {
  const side = (given) => (Array.isArray(given) ? Object.fromEntries(given.map((label) => [label, 1])) : given);
  return { ...edit, method: edit.method ?? "default method", target: side(edit.target), avoid: side(edit.avoid) };
}
