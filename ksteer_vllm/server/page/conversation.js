// The conversation: two histories with the same prompts, one plain and one steered, and what runs now.

import { ServerError } from "./api.js";
import { byId } from "./dom.js";
import { exchange, mode } from "./exchange.js";
import { Turn } from "./turn.js";

const NEAR = 80;
/** Pixels from the end within which the view follows the text. */

export class Conversation {
  /** announce(text): for the status line. onRunning(bool). */
  constructor(announce, onRunning) {
    Object.assign(this, { announce, onRunning, turns: [], running: null });
    this.list = byId("transcript");
  }

  /** Ask both sides. ask: {model, sampling, ksteer, report: whether to ask for one, noReport: why not}. */
  async send(prompt, ask) {
    const controller = new AbortController();
    this.running = controller;
    this.onRunning(true);
    this.turns.forEach((turn) => turn.foldStrip());
    const turn = new Turn(prompt, ask.ksteer, this.announce);
    const earlier = [...this.turns];
    this.turns.push(turn);
    byId("empty").hidden = true;
    this.list.append(turn.element);
    turn.element.scrollIntoView({ block: "end" });
    this.announce("Both sides are writing.");
    const started = performance.now();
    const sides = await Promise.all([
      this.side(turn, "plain", { ...ask, prompt, ksteer: false }, earlier, controller),
      this.side(turn, "steered", { ...ask, prompt }, earlier, controller),
    ]);
    if (this.turns.includes(turn)) {
      this.follow(() => turn.showReport(sides[1]?.report, sides[1]?.tokens, this.whyNoReport(ask, sides[1])));
    }
    if (this.running === controller) {
      this.running = null;
      this.onRunning(false);
      const seconds = ((performance.now() - started) / 1000).toFixed(1);
      const failed = turn.plain.failed || turn.steered.failed;
      const note = mode.reason && !this.toldMode ? ` No chat template: prompts are completed as they are (${mode.reason})` : "";
      this.toldMode ||= Boolean(mode.reason);
      this.announce((controller.signal.aborted ? "Stopped." : failed ? "The request failed; see the reply." : `Done in ${seconds} s.`) + note);
    }
  }

  async side(turn, name, ask, earlier, controller) {
    const reply = turn[name];
    const history = earlier.filter((one) => one[name].text && !one[name].failed).map((one) => ({ prompt: one.prompt, text: one[name].text }));
    const onText = (text, reasoning) => this.follow(() => reply.append(text, reasoning));
    const onRequest = (request) => (reply.request = request);
    try {
      const result = await exchange({ ...ask, history, onRequest }, controller.signal, onText);
      reply.end(result.finish === "length" ? "Ended at the token limit." : "");
      return result;
    } catch (error) {
      if (error.name === "AbortError") reply.end("Stopped.");
      else this.follow(() => reply.fail(error instanceof ServerError ? error.message : String(error)));
      return null;
    }
  }

  whyNoReport(ask, result) {
    if (!ask.ksteer || !result || result.report) return "";
    return ask.noReport || "The response contained no report.";
  }

  stop() {
    this.running?.abort();
  }

  /** Forget everything. */
  clear() {
    this.stop();
    this.turns.forEach((turn) => turn.element.remove());
    this.turns = [];
    byId("empty").hidden = false;
    this.announce("");
  }

  /** Take the last turn back; returns its prompt. */
  takeBack() {
    const turn = this.turns.pop();
    turn?.element.remove();
    return turn?.prompt;
  }

  /** Change the transcript; a reader at its end stays there. */
  follow(change) {
    const box = this.list.scrollHeight > this.list.clientHeight + 1 ? this.list : document.scrollingElement;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    change();
    if (atEnd) box.scrollTop = box.scrollHeight;
  }
}
