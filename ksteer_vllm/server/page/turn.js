// One turn on the screen: the prompt, the two replies, and the strip below them.

import { apiBase, apiKey } from "./api.js";
import { byId, el } from "./dom.js";
import { asCurl, asPython, copy } from "./snippets.js";
import { describe } from "./spec.js";
import { strip } from "./strip.js";

/** One side's reply as it comes in. */
class Reply {
  constructor(title, side, caption, announce) {
    this.side = side;
    this.text = "";
    this.failed = false;
    this.announce = announce;
    this.request = null;
    this.node = document.createTextNode("");
    this.body = el("div", { class: "text", dir: "auto" }, this.node);
    this.note = el("p", { class: "note muted", hidden: true });
    this.copies = el("div", { class: "copies", hidden: true }, this.copyButton("curl", asCurl), this.copyButton("Python", asPython));
    this.element = el(
      "section",
      { class: `reply ${side}`, "aria-label": title, "aria-busy": "true" },
      el("header", {}, el("h3", {}, title), el("p", { class: "spec muted", title: caption, dir: "auto" }, caption)),
      this.body,
      this.note,
      this.copies,
    );
  }

  copyButton(name, write) {
    const onClick = async () => {
      const { path, body } = this.request;
      const copied = await copy(write(apiBase, path, body, Boolean(apiKey.get())), byId("copy-dialog"));
      if (copied) this.announce(`Copied as ${name}.`);
    };
    return el("button", { type: "button", class: "quiet", "aria-label": `Copy the ${this.side} request as ${name}`, click: onClick }, `Copy as ${name}`);
  }

  append(text, reasoning) {
    if (reasoning) this.reasoningNode().appendData(reasoning);
    this.text += text;
    this.node.appendData(text);
  }

  reasoningNode() {
    if (!this.reasoning) {
      this.reasoning = document.createTextNode("");
      const shown = el("div", { class: "text muted", dir: "auto" }, this.reasoning);
      this.body.before(el("details", { class: "reasoning" }, el("summary", {}, "Reasoning"), shown));
    }
    return this.reasoning;
  }

  end(note) {
    this.element.setAttribute("aria-busy", "false");
    this.copies.hidden = !this.request;
    if (note) {
      this.note.textContent = note;
      this.note.hidden = false;
    }
  }

  fail(message) {
    this.failed = true;
    this.element.setAttribute("aria-busy", "false");
    this.copies.hidden = !this.request;
    this.element.append(el("p", { class: "error", role: "alert", dir: "auto" }, message));
  }
}

/** A turn: {prompt, element, plain, steered}. ksteer: what the steered side asks for. */
export class Turn {
  constructor(prompt, ksteer, announce) {
    this.prompt = prompt;
    this.ksteer = ksteer;
    this.plain = new Reply("Unsteered", "plain", "the model as it is", announce);
    this.steered = new Reply("Steered", "steered", describe(ksteer), announce);
    this.below = el("div", { class: "below" });
    this.element = el(
      "article",
      { class: "turn", "aria-label": "Turn" },
      el("p", { class: "prompt", dir: "auto" }, prompt),
      el("div", { class: "replies" }, this.plain.element, this.steered.element),
      this.below,
    );
  }

  /** The strip of a report, or why there is none. */
  showReport(report, tokens, reason) {
    if (report) this.below.replaceChildren(strip(report, tokens));
    else if (reason) this.below.replaceChildren(el("p", { class: "no-strip muted" }, reason));
  }

  foldStrip() {
    const details = this.below.querySelector("details.strip");
    if (details) details.open = false;
  }
}
