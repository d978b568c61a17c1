// The page: loads what the server can do, then connects panel, conversation and keys.

import { apiKey, getJson } from "./api.js";
import { Controls } from "./controls.js";
import { Conversation } from "./conversation.js";
import { byId } from "./dom.js";

const NO_REPORTS = "No label probabilities: this server was started with --no-ksteer-reports.";
const UNTICKED = "No label probabilities: not requested (see Connection).";

const status = (text) => (byId("status").textContent = text);
const conversation = new Conversation(status, onRunning);
let controls = null;
let info = null;

/** name -> value; also for names such as __proto__. */
const named = (list, value) => Object.assign(Object.create(null), Object.fromEntries(listOf(list).map((one) => [one.name, value(one)])));
const listOf = (value) => (Array.isArray(value) ? value : (value.data ?? []));

async function load() {
  notice("");
  try {
    const [found, probes, presets] = await Promise.all([getJson("ksteer"), getJson("ksteer/probes"), getJson("ksteer/presets")]);
    info = found;
    const cards = named(probes, (card) => card);
    const specs = named(presets, (preset) => preset.spec);
    showServer();
    if (!Object.keys(cards).length) notice("No probe is loaded on this server: both sides will be unsteered.");
    controls = new Controls({ info, cards, presets: specs }, (request) => {
      byId("preview").textContent = JSON.stringify({ ksteer: request }, null, 2);
    });
  } catch (error) {
    controls = null;
    byId("own").hidden = byId("preset").disabled = true;
    if (error.status === 401) {
      notice("This server requires an API key: enter it below.");
      byId("connection").open = true;
      byId("panel").open = true;
      byId("api-key").focus();
    } else notice(`Could not read this server's steering: ${error.message}`);
  }
  byId("send").disabled = !controls;
}

function showServer() {
  const { name, num_layers: layers } = info.model;
  byId("server").textContent = `${name} · ${layers} layers`;
  byId("server").title = Object.entries(info.versions ?? {}).map((pair) => pair.join(" ")).join(", ");
  byId("want-report").disabled = !info.reports;
  byId("report-note").hidden = info.reports;
  byId("report-note").textContent = info.reports ? "" : NO_REPORTS;
  if (!info.reports) byId("want-report").checked = false;
}

function notice(text) {
  byId("panel-notice").textContent = text;
  byId("panel-notice").hidden = !text;
}

function sampling() {
  const given = { temperature: byId("temperature").value, max_tokens: byId("max-tokens").value, seed: byId("seed").value };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
}

function send(prompt) {
  if (!controls || conversation.running || !prompt.trim()) return;
  const report = info.reports && byId("want-report").checked;
  const noReport = info.reports ? UNTICKED : NO_REPORTS;
  conversation.send(prompt, { model: info.model.name, sampling: sampling(), ksteer: controls.request(), report, noReport: report ? "" : noReport });
}

/** Send what is typed; with nothing typed, ask the last prompt again. */
function sendTyped() {
  const prompt = byId("prompt").value;
  if (!prompt.trim()) return again();
  if (!controls || conversation.running) return;
  byId("prompt").value = "";
  send(prompt);
}

function again() {
  if (controls && !conversation.running && conversation.turns.length) send(conversation.takeBack());
}

function onRunning(running) {
  byId("stop").hidden = !running;
  byId("send").hidden = running;
  byId("again").disabled = running || !conversation.turns.length;
}

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  sendTyped();
};
byId("again").onclick = again;
byId("stop").onclick = () => {
  conversation.stop();
  byId("prompt").focus();
};
byId("clear").onclick = () => {
  conversation.clear();
  byId("again").disabled = true;
  byId("prompt").focus();
};
byId("reload").onclick = load;
byId("api-key").value = apiKey.get();
byId("api-key").onchange = () => {
  apiKey.set(byId("api-key").value.trim());
  load();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    sendTyped();
  } else if (event.key === "Escape" && conversation.running) {
    event.preventDefault();
    conversation.stop();
  }
});

if (/Mac|iPhone|iPad/.test(navigator.userAgent)) byId("send-key").textContent = "⌘ ↵";

const wide = matchMedia("(min-width: 701px)");
const fitPanel = () => (byId("panel").open = wide.matches);
wide.onchange = fitPanel;
fitPanel();
load();
