"use strict";
// What all pages share; the server puts it into each of them.
const $ = (id) => document.getElementById(id);
const say = (text) => { $("status").textContent = text; };

// The error that a response with a bad status stands for.
async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error?.message || `the server answers with status ${response.status}`);
  error.status = response.status;
  error.code = body.error?.code;
  return error;
}

// A browser's words for a server that isn't there say nothing.
const wordsFor = (error) => error instanceof TypeError ? `the server can't be reached (${error.message})` : error.message;

// The JSON that a path answers with; with a body it is sent as JSON.
async function ask(path, body) {
  const sent = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  const response = await fetch(path, body === undefined ? {} : sent);
  if (!response.ok) throw await failure(response);
  return response.json();
}

// The JSON values of a response of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// Text that nobody vouches for: always text, in a direction of its own, and never more at once than can be laid out.
class TextView {
  static STEP = 20_000;  // characters

  constructor(element) {
    this.element = element;
    element.classList.add("text");
    element.dir = "auto";
    this.clear();
  }

  clear() {
    this.text = "";
    this.limit = TextView.STEP;
    this.shown = 0;
    this.node = document.createTextNode("");
    this.element.replaceChildren(this.node);
    this.more = null;
  }

  set(text) {
    this.clear();
    this.add(text);
  }

  add(piece) {
    this.text += piece;
    const end = Math.min(this.text.length, this.limit);
    if (end > this.shown) {
      this.node.appendData(TextView.visible(this.text.slice(this.shown, end)));
      this.shown = end;
    }
    this.#offerMore();
  }

  #offerMore() {
    const left = this.text.length - this.shown;
    if (!left) return this.more?.remove();
    if (!this.more?.isConnected) {
      this.more = document.createElement("button");
      this.more.type = "button";
      this.more.className = "more";
      this.more.addEventListener("click", () => { this.limit += TextView.STEP; this.add(""); });
      this.element.append(this.more);
    }
    this.more.textContent = `Show more (${left.toLocaleString("en")} characters are left)`;
  }

  // Control characters as their pictures: they have no look of their own, and terminals obey some.
  static visible(text) {
    return text.replace(/\r\n/g, "\n").replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (character) => {
      const code = character.charCodeAt(0);
      return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
    });
  }
}

// A field as high as what is written in it.
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

// What a key does outside of fields to write in. Held keys count once.
function onKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    if (event.key === "Enter" && event.target.closest("button, a, summary")) return;  // which it presses
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action) { event.preventDefault(); action(); }
  });
}
