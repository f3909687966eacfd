// One turn: what was asked, what members and tools do, and the answer, while it is written or as it is stored.
//
// Its buttons tell the page, by an event "again" that bubbles, what to ask: a text, or decisions on a paused run.

import { render } from "/static/markdown.js";

const thread = document.getElementById("thread");

/** Return an element; `class` and what has a dash are attributes, everything else is a property. */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class" || key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export const atEnd = () => thread.scrollHeight - thread.scrollTop - thread.clientHeight < 60;

/** Change the thread, and stay at its end if that is what is looked at. */
export function following(change) {
  const stays = atEnd();
  change();
  if (stays) thread.scrollTop = thread.scrollHeight;
  thread.dispatchEvent(new Event("scroll"));
}

// ── What the codes of teamturn mean for the person who asks ─────────────────────────────────────────────────────────

const SENTENCES = {
  session_busy: "This conversation is still being answered, in another window perhaps. Wait for it, or stop it.",
  session_paused: "This conversation waits for a decision. Decide first, then ask on.",
  run_not_paused: "This was decided already, or waits no longer.",
  pause_expired: "It has waited for a decision for too long. Ask again.",
  decision_unknown: "This decision is on something else. Load the page again.",
  session_forbidden: "This conversation belongs to somebody else.",
  session_target_mismatch: "This conversation began with another team.",
  session_deleted: "This conversation was deleted meanwhile.",
  session_too_large: "This conversation remembers too much already. Begin a new one.",
  unknown_target: "The team that should answer is not at work here.",
  deadline_exceeded: "The time for an answer is over.",
  turn_timeout: "The answer took too long, and was stopped.",
  model_error: "The model could not be reached, or broke off.",
  invalid_output: "The model kept answering in a form that can't be used.",
  tool_failed: "A tool of the team has failed.",
  executor_failed: "The team has failed.",
  usage_limit_exceeded: "The answer would have cost more than it may.",
  step_uncertain: "It broke off in a step that must not be done twice. Check what was done before you ask again.",
  attempts_exhausted: "It was tried several times, and broke off each time.",
  reply_too_large: "The answer is too large to be shown here. It is stored.",
};

function sentenceOf(error) {
  return SENTENCES[error?.code] ?? error?.message ?? "It can't be answered.";
}

// ── One turn ────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Text that grows. Drawn once a frame, however many pieces come. */
class Prose {
  constructor() {
    this.node = el("div", { class: "prose" });
    this.text = "";
    this.drawing = 0;
  }

  append(text) {
    this.text += text;
    this.drawing ||= requestAnimationFrame(() => this.draw());
  }

  set(text) {
    this.text = text;
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    following(() => {
      this.node.replaceChildren(render(this.text));
      for (const block of this.node.querySelectorAll("pre")) block.append(copyButton(() => block.firstChild.textContent));
    });
  }
}

/** A member's part or a tool's call: a line that can be opened. */
class Step {
  constructor(kind, name) {
    this.kind = kind;
    this.name = name;
    this.prose = new Prose();
    this.hint = el("span", { class: "preview" });
    this.state = el("span", { class: "unseen" });
    const summary = el("summary", {}, el("span", { class: "mark", "aria-hidden": "true" }), el("span", { class: "name" }, name), this.hint, this.state);
    this.body = el("div", { class: "inside" });
    this.steps = el("ol", { class: "steps" });
    this.details = el("details", {}, summary, this.body);
    this.node = el("li", { class: `step ${kind}` }, this.details);
    if (kind === "member") this.body.append(this.steps, this.prose.node);
    // Who opens or closes a line wants it so.
    summary.addEventListener("click", () => (this.touched = true));
  }

  become(state) {
    this.node.dataset.state = state;
    this.state.textContent = `, ${state}`;
    // A member is watched while it works, and out of the way when it is done.
    if (this.kind === "member" && !this.touched) this.details.open = state === "working";
    return this;
  }

  called(given) {
    this.hint.textContent = Object.values(fieldsOf(given)).join(", ");
    this.body.append(el("h4", {}, "Called with"), fields(given));
    return this;
  }

  returned(result) {
    if (result != null) this.body.append(el("h4", {}, "Returned"), el("pre", {}, el("code", {}, String(result))));
    return this;
  }
}

export class Turn {
  constructor({ text = "", request = null }) {
    this.text = text;
    this.request = request; // what was posted, to be asked again
    this.seen = [0, 0]; // attempt and number of the last event
    this.byId = new Map();
    this.steps = el("ol", { class: "steps" });
    this.prose = new Prose();
    this.foot = el("div", { class: "foot" });
    this.node = el("article", { class: "turn" });
    if (text) this.node.append(el("div", { class: "question" }, el("h3", { class: "unseen" }, "You"), el("p", {}, text)));
    this.node.append(el("div", { class: "answer" }, el("h3", { class: "unseen" }, "Answer"), this.steps, this.prose.node, this.foot));
  }

  /** Show a turn as it is stored. */
  static stored(run) {
    const turn = new Turn({ text: run.text });
    turn.id = run.run_id;
    turn.showSteps(run.steps, turn.steps);
    turn.show(run);
    return turn;
  }

  showSteps(steps, list) {
    for (const one of steps) {
      if (one.kind === "said") {
        list.append(saidBefore(one.text));
        continue;
      }
      const step = new Step(one.kind, one.kind === "member" ? one.member : one.tool);
      if (one.kind === "member") {
        step.prose.set(textOf(one.content));
        this.showSteps(one.steps, step.steps);
        step.become(STATES[one.status] ?? "done");
      } else {
        step.called(one.arguments).returned(one.result).become(one.failed ? "failed" : "done");
      }
      list.append(step.node);
    }
  }

  say(sentence) {
    this.node.dataset.state = "working";
    if (this.foot.dataset.said === sentence) return;
    this.foot.dataset.said = sentence;
    this.foot.replaceChildren(el("p", { class: "waiting" }, sentence));
  }

  /** Say who is at work, or which tool. */
  sayWho() {
    const working = [...this.byId.values()].filter((step) => step.node.dataset.state === "working");
    const names = (kind) => [...new Set(working.filter((step) => step.kind === kind).map((step) => step.name))];
    const [members, tools] = [names("member"), names("tool")];
    if (members.length) this.say(`${NAMES.format(members)} ${members.length > 1 ? "are" : "is"} at work …`);
    else this.say(tools.length ? `Calling ${NAMES.format(tools)} …` : "Thinking …");
  }

  apply(event) {
    if (event.type === "gateway_failed") this.fail(event.message);
    if (event.number === undefined) return;
    // The same events may come again when the stream was broken off; the last one is numbered by what came before it.
    const [attempt, number] = this.seen;
    const again = event.attempt < attempt || (event.attempt === attempt && event.number <= number);
    if (again && event.type !== "run_finished") return;
    this.seen = [event.attempt, event.number];
    const within = this.byId.get(event.member_run_id);
    following(() => this[event.type]?.(event, within));
  }

  run_started(event) {
    if (event.attempt > 1) this.prose.set(""); // what was recorded stays: its steps; the rest is written again
    this.say(event.attempt > 1 ? "The worker was lost. Another one goes on …" : "Thinking …");
  }

  content_delta(event, within) {
    if (!within) this.foot.replaceChildren(), delete this.foot.dataset.said;
    (within ?? this).prose.append(event.text);
  }

  member_started(event) {
    const step = this.add(event.member_run_id, "member", event.member_id, this.byId.get(event.parent_run_id));
    // Another worker tells it again, but writes again only what was not recorded.
    if (step.node.dataset.state !== "done") step.prose.set("");
    step.become("working");
    this.sayWho();
  }

  member_finished(event) {
    this.byId.get(event.member_run_id)?.become(STATES[event.status] ?? "done");
    this.sayWho();
  }

  tool_call_started(event, within) {
    const known = this.byId.has(event.call_id);
    const step = this.add(event.call_id, "tool", event.tool, within);
    if (!known) step.called(event.arguments);
    step.become("working");
    this.sayWho();
  }

  tool_call_finished(event) {
    this.byId.get(event.call_id)?.become(event.failed ? "failed" : "done");
    this.sayWho();
  }

  custom(event) {
    if (typeof event.data === "string") this.say(event.data);
  }

  run_finished(event) {
    this.id = event.run_id;
    for (const { member_id, content } of event.reply.member_responses ?? []) {
      const silent = (step) => step.kind === "member" && step.name === member_id && !step.prose.text;
      [...this.byId.values()].find(silent)?.prose.set(textOf(content));
    }
    this.show(event.reply);
  }

  /** Return the step of an id, a new one at the end of what its parent, or the turn, has done. */
  add(id, kind, name, parent) {
    if (!this.byId.has(id)) {
      const step = new Step(kind, name);
      if (!parent && this.prose.text.trim()) {
        this.steps.append(saidBefore(this.prose.text));
        this.prose.set("");
      }
      (parent ?? this).steps.append(step.node);
      this.byId.set(id, step);
    }
    return this.byId.get(id);
  }

  /** Show how it ended: a reply, or a stored run. */
  show({ status, content, error, metrics, approvals }) {
    this.node.dataset.state = status.toLowerCase();
    for (const step of this.byId.values()) if (step.node.dataset.state === "working") step.become(STATES[status] === "paused" ? "paused" : "stopped");
    if (content != null) this.prose.set(textOf(content));
    this.prose.draw();
    const parts = [];
    if (status === "CANCELLED") parts.push(el("p", {}, "Stopped."));
    else if (status === "PAUSED" && approvals?.length) parts.push(this.approvals(approvals));
    else if (error) parts.push(el("p", { class: "bad" }, sentenceOf(error)));
    if (["ERROR", "REJECTED"].includes(status)) parts.push(...this.again());
    if (status === "COMPLETED" && content != null) parts.push(copyButton(() => this.prose.text), took(metrics));
    this.foot.replaceChildren(...parts);
  }

  fail(message) {
    this.node.dataset.state = "error";
    this.foot.replaceChildren(el("p", { class: "bad" }, message), ...this.again());
  }

  /** A button that asks the same again, as a new run: the message, or what was decided. */
  again() {
    const { continues, decisions } = this.request ?? {};
    if (!this.text && !continues) return [];
    const button = el("button", { type: "button", class: "again" }, "Ask again");
    button.addEventListener("click", () => tell(button, "again", continues ? { continues, decisions } : { text: this.text }));
    return [button];
  }

  /** Ask for a decision on each call that waits for one; when all are made, the run goes on. */
  approvals(asked) {
    const decisions = new Map();
    const list = el("div", { class: "approvals" }, el("p", {}, "The team wants to do this, and waits for you:"));
    for (const one of asked) {
      const reason = el("input", { type: "text", maxLength: 1000, placeholder: "Why not? (optional)", "aria-label": "Why not" });
      const buttons = [true, false].map((approved) => {
        const button = el("button", { type: "button", class: approved ? "approve" : "deny" }, approved ? "Approve" : "Deny");
        button.addEventListener("click", () => {
          const message = approved ? "" : reason.value.trim();
          decisions.set(one.tool_call_id, { tool_call_id: one.tool_call_id, approved, ...(message && { message }) });
          foot.replaceChildren(el("p", {}, approved ? "Approved." : "Denied."));
          if (decisions.size === asked.length) tell(list, "again", { continues: this.id, decisions: [...decisions.values()] });
        });
        return button;
      });
      const foot = el("div", { class: "decide" }, ...buttons, reason);
      const who = one.member_id ? `${one.member_id}: ${one.tool}` : one.tool;
      list.append(el("div", { class: "approval" }, el("strong", {}, who), fields(one.arguments), foot));
    }
    return list;
  }
}

const NAMES = new Intl.ListFormat("en");
const STATES = { COMPLETED: "done", ERROR: "failed", CANCELLED: "stopped", PAUSED: "paused" };

/** What was said before somebody was called. */
function saidBefore(text) {
  return el("li", { class: "said" }, el("div", { class: "prose" }, render(text)));
}

function tell(from, type, detail) {
  from.dispatchEvent(new CustomEvent(type, { bubbles: true, detail }));
}

/** A call's arguments, by name, as text; of what has no names, under none. */
function fieldsOf(given) {
  if (given == null) return {};
  const named = typeof given === "object" && !Array.isArray(given) ? given : { "": given };
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return Object.fromEntries(Object.entries(named).map(([name, value]) => [name, text(value)]));
}

function fields(given) {
  const rows = Object.entries(fieldsOf(given)).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  return rows.length ? el("dl", {}, ...rows) : el("p", { class: "preview" }, "nothing");
}

function textOf(content) {
  if (content == null || typeof content === "string") return content ?? "";
  return `\`\`\`json\n${JSON.stringify(content, null, 2)}\n\`\`\``;
}

function took(metrics) {
  const parts = [];
  if (metrics?.duration) parts.push(`${metrics.duration.toFixed(1)} s`);
  if (metrics?.total_tokens) parts.push(`${metrics.total_tokens.toLocaleString("en")} tokens`);
  return el("span", { class: "took" }, parts.join(" · "));
}

function copyButton(text) {
  const button = el("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    // There is no clipboard on a page that came by plain HTTP from another machine.
    const copied = navigator.clipboard?.writeText(text()).then(() => true, () => false);
    button.textContent = (await copied) ? "Copied" : "Not possible here";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}
