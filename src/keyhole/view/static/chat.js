import { Api, recordOf } from "./api.js";
import { counted, element } from "./elements.js";

// Documents and questions, where the page comes from a server. What an answer read is shown by `onRecord`.

export class Chat {
  constructor(onRecord) {
    this.onRecord = onRecord;
    this.api = new Api();
    this.messages = [];
    this.running = null;
    this.documents = element("select", { id: "document", "aria-label": "Document" });
    this.file = element("input", { type: "file", hidden: true, accept: ".txt,.md,.html,.htm,.pdf,text/*", "aria-label": "File to add" });
    this.file.addEventListener("change", () => this.add(this.file.files[0]));
    this.adding = element("button", { type: "button", onclick: () => this.file.click() }, "Add a document\u2026");
    this.method = element("input", { type: "text", placeholder: "server's method", "aria-label": "Method, such as pqcache(budget=0.05)", spellcheck: "false" });
    this.fresh = element("button", { type: "button", onclick: () => this.restart() }, "New conversation");
    this.key = element("input", { type: "password", placeholder: "API key", "aria-label": "API key", autocomplete: "off", hidden: true });
    this.key.addEventListener("change", () => { this.api.key = this.key.value; this.refresh(); });
    this.question = element("textarea", { rows: 2, placeholder: "Ask about the document", "aria-label": "Question" });
    this.question.addEventListener("keydown", event => {
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.ask(); }
    });
    this.send = element("button", { type: "button", class: "send", onclick: () => (this.running ? this.running.abort() : this.ask()) }, "Ask");
    this.log = element("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" });
    this.said = element("p", { class: "chat-said", role: "status" });
    this.documents.addEventListener("change", () => this.restart());
    this.node = element("section", { class: "chat", "aria-label": "Ask" },
      element("div", { class: "row" }, this.documents, this.adding, this.file, this.method, this.fresh,
        element("form", { onsubmit: event => event.preventDefault() }, this.key)),
      this.log, element("div", { class: "row ask" }, this.question, this.send), this.said);
  }

  async refresh(chosen = this.documents.value) {
    await this.guarded(async () => {
      const [models, listed] = await Promise.all([this.api.json("/v1/models"), this.api.json("/v1/documents")]);
      this.model = models.data[0].id;
      const ready = listed.data.filter(one => one.status === "ready");
      const options = ready.map(one => element("option", { value: one.id }, `${one.id} (${counted(one.tokens)} tokens)`));
      this.documents.replaceChildren(element("option", { value: "" }, "no document"), ...options);
      this.documents.value = ready.some(one => one.id === chosen) ? chosen : "";
      this.say(`${this.model} is ready`);
    });
  }

  restart() {
    this.messages = [];
    this.log.replaceChildren();
  }

  say(text) { this.said.textContent = text; }

  // Runs a task, and says what went wrong; a missing key is asked for.
  async guarded(task) {
    try {
      await task();
    } catch (error) {
      if (error.status === 401) this.key.hidden = false;
      this.say(error.name === "AbortError" ? "Stopped." : error.message);
    }
  }

  async add(file) {
    if (!file) return;
    this.adding.disabled = true;
    await this.guarded(async () => {
      this.say(`Sending ${file.name}\u2026`);
      let added = null;
      for await (const event of this.api.upload(file)) {
        if (event.type === "document.queued") this.say(`${file.name} waits; place ${event.place}`);
        if (event.type === "document.reading") this.say(`Reading ${file.name}: ${counted(event.done)} of ${counted(event.total)} tokens`);
        if (event.type === "document.ready") added = event.document;
      }
      if (!added) throw new Error(`${file.name} was not stored`);
      await this.refresh(added.id);
      this.restart();
      this.say(`${added.id} is stored: ${counted(added.tokens)} tokens`);
    });
    this.adding.disabled = false;
    this.file.value = "";
  }

  async ask() {
    const question = this.question.value.trim();
    if (!question || this.running) return;
    this.running = new AbortController();
    this.send.textContent = "Stop";
    const before = this.messages.length;
    this.messages.push({ role: "user", content: question });
    const asked = this.turn("user", question), answered = this.turn("assistant", "");
    this.question.value = "";
    let whole = false;
    await this.guarded(async () => {
      const record = await this.stream(answered);
      this.messages.push({ role: "assistant", content: answered.textContent });
      whole = true;
      if (record) this.onRecord([{ ...record, question }]);
    });
    if (!whole) {
      // What was not answered is asked again.
      this.messages.length = before;
      this.question.value = this.question.value || question;
      for (const node of [asked, answered]) node.classList.add("broken");
    }
    this.running = null;
    this.send.textContent = "Ask";
  }

  async stream(answered) {
    const own = { record: true };
    if (this.documents.value) own.document = this.documents.value;
    if (this.method.value.trim()) own.method = this.method.value.trim();
    const body = { model: this.model, messages: this.messages, stream: true, stream_options: { include_usage: true }, x_keyhole: own };
    let record = null;
    this.say("\u2026");
    for await (const chunk of this.api.post("/v1/chat/completions", body, text => this.say(text), this.running.signal)) {
      answered.append(chunk.choices[0]?.delta?.content || "");
      this.log.scrollTop = this.log.scrollHeight;
      if (!chunk.x_keyhole) continue;
      const { method, share, record: records } = chunk.x_keyhole;
      this.say(`${method} read ${(100 * share).toFixed(1)}% of the context`);
      record = records ? recordOf(records[0]) : null;
    }
    return record;
  }

  turn(role, text) {
    const node = element("p", { class: `turn ${role}` }, text);
    this.log.append(node);
    this.log.scrollTop = this.log.scrollHeight;
    return node;
  }
}
