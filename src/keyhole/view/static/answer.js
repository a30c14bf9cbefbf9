import { element, shownToken } from "./elements.js";

// The answer's tokens, of which one is chosen, and a slider over all steps.

export class AnswerPane {
  constructor(record, onStep) {
    this.record = record;
    this.onStep = onStep;
    this.tokens = element("div", { class: "tokens", role: "listbox", tabindex: "-1", "aria-label": "Answer, by tokens", "aria-orientation": "horizontal" });
    record.steps.forEach((step, number) => this.tokens.append(this.token(step, number)));
    this.tokens.addEventListener("click", event => this.choose(event.target.closest("[data-step]")));
    this.tokens.addEventListener("keydown", event => this.key(event));
    this.slider = element("input", { type: "range", min: 0, max: record.steps.length - 1, value: 0, "aria-label": "Step" });
    this.slider.addEventListener("input", () => this.onStep(Number(this.slider.value)));
    this.said = element("output", { class: "step-said" });
    const by = (sign, name, label) => element("button", { type: "button", "aria-label": label, onclick: () => this.move(sign) }, name);
    this.steps = element("div", { class: "steps" }, by(-1, "\u2190", "Previous step"), this.slider, by(1, "\u2192", "Next step"), this.said);
    this.node = element("section", { class: "answer-pane", "aria-label": "Answer" },
      element("p", { class: "question" }, record.question || "(the text is continued)"), this.tokens, this.steps);
  }

  token(step, number) {
    const asks = step.token === null;
    const text = asks ? `question: ${step.queries} tokens` : this.record.tokenText(step.token);
    const shown = asks ? text : shownToken(text);
    return element("span", { role: "option", tabindex: "-1", "data-step": number, "aria-selected": "false", class: asks ? "asks" : text.trim() ? "" : "blank" }, shown);
  }

  choose(option) { if (option) this.onStep(Number(option.dataset.step)); }

  move(by) {
    const last = this.record.steps.length - 1;
    this.onStep(Math.min(last, Math.max(0, this.step + by)));
  }

  key(event) {
    const last = this.record.steps.length - 1;
    const goes = { ArrowLeft: this.step - 1, ArrowUp: this.step - 1, ArrowRight: this.step + 1, ArrowDown: this.step + 1, Home: 0, End: last };
    if (!(event.key in goes)) return;
    event.preventDefault();
    this.onStep(Math.min(last, Math.max(0, goes[event.key])));
    this.tokens.children[this.step].focus();
  }

  show(step) {
    this.step = step;
    const { token, queries } = this.record.steps[step];
    for (const option of this.tokens.children) {
      const chosen = Number(option.dataset.step) === step;
      option.setAttribute("aria-selected", String(chosen));
      option.tabIndex = chosen ? 0 : -1;
    }
    this.slider.value = step;
    const what = token === null ? `${queries} tokens of the question` : `\u201c${shownToken(this.record.tokenText(token))}\u201d`;
    this.slider.setAttribute("aria-valuetext", `Step ${step + 1}: ${what}`);
    this.said.textContent = `${step + 1} of ${this.record.steps.length}`;
    const chosen = this.tokens.children[step], box = this.tokens;
    if (chosen.offsetTop < box.scrollTop || chosen.offsetTop + chosen.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = chosen.offsetTop - box.clientHeight / 2;
    }
  }
}
