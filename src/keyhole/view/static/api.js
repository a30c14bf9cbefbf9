// Requests to the server that the page came from.

const BETWEEN = /\r?\n\r?\n/;

export class Api {
  constructor() { this.key = ""; }

  async fetch(path, options = {}) {
    const headers = { ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}), ...options.headers };
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => null);
    const error = new Error(said?.error?.message || `the server answered ${answer.status}`);
    error.status = answer.status;
    throw error;
  }

  async json(path) { return (await this.fetch(path)).json(); }

  // The values of a stream of events; `waits(text)` is called with its comments.
  async *events(path, options, waits = () => {}) {
    const answer = await this.fetch(path, { method: "POST", ...options });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      held += value || "";
      const blocks = held.split(BETWEEN);
      held = blocks.pop();
      for (const block of done ? [...blocks, held] : blocks) {
        const data = block.split("\n").filter(line => line.startsWith("data:")).map(line => line.slice(5).trim()).join("\n");
        if (block.startsWith(":")) waits(block.slice(1).trim());
        if (!data || data === "[DONE]") continue;
        const found = JSON.parse(data);
        if (found.error) throw new Error(found.error.message);
        yield found;
      }
      if (done) return;
    }
  }

  post(path, body, waits, signal) {
    const options = { body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
    return this.events(path, options, waits);
  }

  upload(file, waits) {
    const body = new FormData();
    body.append("file", file);
    body.append("stream", "true");
    return this.events("/v1/documents", { body }, waits);
  }
}

// A record as the server sends it, in base64.
export function recordOf(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}
