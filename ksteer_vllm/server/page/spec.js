// Between the controls and the `ksteer` field of a request. Pure: no DOM.
//
// Settings: {probe, method, weights: Map label -> -1..1, values: Map label -> number, alpha: number or null (default),
// steps, layers: sorted numbers or null (default)}.

const DEFAULT_STEPS = 8;
const IN_CONTROLS = ["probe", "method", "target", "avoid", "values", "alpha", "num_steps", "layers"];
const CLEARED = { target: {}, avoid: {}, values: {}, alpha: null, num_steps: null, layers: null };

/** The optional fields a method takes, as the server lists them. */
export function fieldsOf(info, card, method) {
  return new Set(info.methods?.[card.family]?.[method] ?? ["target", "avoid", "alpha", "num_steps"]);
}

/** Layers a request may name: the probe's own, or every open one for a probe with one set of weights. */
export function layerChoices(info, card) {
  return card.layers.length ? card.layers.filter((layer) => info.layers.includes(layer)) : info.layers;
}

export const defaultLayers = (card, method) =>
  defaultEdit(card, method).layers ?? (card.default_layers?.length ? card.default_layers : card.layers);

/** The probe's default edit where it applies: to requests of the default method. */
export const defaultEdit = (card, method) => (method === card.methods[0] && card.default_edit) || {};

/** The strength of a request that gives none, or null if the server requires one. That of a default edit is the mean of
 *  the labels' own, by their weights, as the server takes it: of those to move towards or, without any, of the others. */
export function defaultAlpha(card, method, weights) {
  const alpha = defaultEdit(card, method).alpha ?? null;
  if (alpha === null) return card.default_alpha?.[method] ?? null;
  const own = new Map(Object.entries(card.label_alpha ?? {}));
  const towards = [...weights].filter(([, weight]) => weight > 0);
  const labels = towards.length ? towards : [...weights];
  const whole = labels.reduce((sum, [, weight]) => sum + weight, 0);
  return whole ? labels.reduce((sum, [label, weight]) => sum + weight * (own.get(label) ?? alpha), 0) / whole : alpha;
}

export const defaultSteps = (card, method) => defaultEdit(card, method).num_steps ?? DEFAULT_STEPS;

/** The settings as a spec without a preset; null if they steer nothing. */
export function ownSpec(settings, info, card) {
  const takes = fieldsOf(info, card, settings.method);
  const spec = { probe: settings.probe, method: settings.method };
  const weights = card.labels.map((label) => [label, settings.weights.get(label) ?? 0]);
  const sides = {
    target: weights.filter(([, weight]) => weight > 0),
    avoid: weights.filter(([, weight]) => weight < 0).map(([label, weight]) => [label, -weight]),
    values: card.labels.filter((label) => settings.values.has(label)).map((label) => [label, settings.values.get(label)]),
  };
  for (const [name, side] of Object.entries(sides)) {
    if (takes.has(name) && side.length) spec[name] = Object.fromEntries(side);
  }
  if (!("target" in spec || "avoid" in spec || "values" in spec)) return null;
  if (takes.has("alpha") && settings.alpha !== null) spec.alpha = settings.alpha;
  if (takes.has("num_steps") && settings.steps !== defaultSteps(card, settings.method)) spec.num_steps = settings.steps;
  if (settings.layers !== null) spec.layers = settings.layers;
  return spec;
}

/** What is sent for a preset whose own spec `filled` was put into the controls, which now say `spec`: its
 *  name and what has changed. null: probe or method changed, so it is that preset no longer. */
export function presetRequest(name, filled, spec, card) {
  if (spec.probe !== filled.probe || spec.method !== filled.method) return null;
  const request = { preset: name };
  const cleared = { ...CLEARED, num_steps: defaultSteps(card, spec.method) };
  for (const field of Object.keys(CLEARED)) {
    if (JSON.stringify(spec[field]) !== JSON.stringify(filled[field])) request[field] = spec[field] ?? cleared[field];
  }
  return request;
}

/** Settings that show a preset's spec (one edit). Weights are scaled so that the largest is 1. */
export function settingsOf(spec, card) {
  const method = spec.method ?? (spec.values ? card.methods.find((name) => name === "clamp") : null) ?? card.methods[0];
  const weights = new Map();
  for (const [side, sign] of [["target", 1], ["avoid", -1]]) {
    const given = spec[side] ?? {};
    const pairs = Array.isArray(given) ? given.map((label) => [label, 1]) : Object.entries(given);
    const largest = Math.max(...pairs.map(([, weight]) => weight));
    for (const [label, weight] of pairs) weights.set(label, sign * Math.max(0.05, Math.round((20 * weight) / largest) / 20));
  }
  return {
    probe: spec.probe,
    method,
    weights,
    values: new Map(Object.entries(spec.values ?? {})),
    alpha: spec.alpha ?? null,
    steps: spec.num_steps ?? defaultSteps(card, method),
    layers: spec.layers ? [...spec.layers].sort((a, b) => a - b) : null,
  };
}

/** The fields of a preset that the controls do not show, as text; empty if there are none. */
export function hiddenFields(spec) {
  const hidden = Object.entries(spec).filter(([name]) => !IN_CONTROLS.includes(name) && name !== "report");
  return hidden.map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
}

const round = (number) => String(Number(number.toPrecision(4)));

/** One line about what a request asked for. */
export function describe(request) {
  if (request === false) return "not steered: every label is at 0";
  const parts = [];
  if (request.preset) parts.push(`preset ${request.preset}`);
  if (request.probe) parts.push(request.probe, request.method);
  const sides = [];
  for (const [side, sign] of [["target", "+"], ["avoid", "−"]]) {
    for (const [label, weight] of Object.entries(request[side] ?? {})) sides.push(`${sign}${label}${weight === 1 ? "" : ` ${round(weight)}`}`);
  }
  for (const [label, value] of Object.entries(request.values ?? {})) sides.push(`${label} = ${round(value)}`);
  if (sides.length) parts.push(sides.join(", "));
  if (typeof request.alpha === "number") parts.push(`alpha ${round(request.alpha)}`);
  if (request.num_steps) parts.push(request.num_steps === 1 ? "1 step" : `${request.num_steps} steps`);
  if (request.layers) parts.push(`${request.layers.length === 1 ? "layer" : "layers"} ${request.layers.join(", ")}`);
  return parts.join(" · ");
}
