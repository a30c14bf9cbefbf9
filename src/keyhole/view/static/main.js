import { Chat } from "./chat.js";
import { RunRecord } from "./codec.js";
import { element } from "./elements.js";
import { Run } from "./run.js";

// The records that came with the page, side by side; of a server also those of what it is asked.

const THEMES = ["", "light", "dark"];
const runs = [];

export function showRecords(held) {
  const place = document.getElementById("runs");
  runs.splice(0, runs.length, ...held.map((one, number) => new Run(new RunRecord(one), held.length > 1 ? `Run ${number + 1}` : "Run")));
  place.classList.toggle("several", runs.length > 1);
  place.style.setProperty("--runs", runs.length);
  place.replaceChildren(...runs.map(run => run.node));
  const [one, other] = runs;
  if (runs.length === 2 && one.record.text.slice(0, one.record.document[1]) === other.record.text.slice(0, other.record.document[1])) {
    one.beside = other;
    other.beside = one;
  }
  for (const run of runs) run.refresh();
}

function startChat() {
  const chat = new Chat(showRecords);
  document.getElementById("chat").replaceChildren(chat.node);
  if (!runs.length) document.getElementById("runs").replaceChildren(element("p", { class: "failed" }, "What an answer reads is shown here."));
  chat.refresh();
}

function failed(error) {
  document.getElementById("runs").replaceChildren(element("p", { class: "failed", role: "alert" }, `This record cannot be shown: ${error.message}`));
}

function turnTheme(button) {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme || "") + 1) % THEMES.length];
  root.dataset.theme = next;
  button.textContent = `Theme: ${next || "system"}`;
  for (const run of runs) run.paint();
}

const themes = document.getElementById("theme");
themes.addEventListener("click", () => turnTheme(themes));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const run of runs) run.paint(); });
try {
  const held = [...document.querySelectorAll("script.record")].map(node => JSON.parse(node.textContent));
  if (held.length) showRecords(held);
  if ("server" in document.body.dataset) startChat();
} catch (error) {
  failed(error);
}
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.ready = performance.now(); }));
