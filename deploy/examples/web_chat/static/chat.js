// The page: conversations on the left, one of them on the right. What comes from a model is shown by markdown.js, as text.

import { render } from "/static/markdown.js";

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  ["drawer", "backdrop", "menu", "new", "sessions", "no-sessions", "title", "team", "thread", "empty", "turns", "latest"]
    .concat(["composer", "trouble", "message", "choice", "teams", "send", "stop", "said"])
    .map((id) => [id, $(id)]),
);

/** The conversation that is shown: its id (null: not begun), its team, and the turn that is being answered. */
let shown = { id: null, team: null, running: null };

/** Return an element; `class` and what has a dash are attributes, everything else is a property. */
function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class" || key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Ask the gateway. Throws an Error with a sentence for people. */
async function call(path, body) {
  let response;
  try {
    response = await fetch(path, body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Error("The chat can't be reached. Is there a connection?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(content.message ?? "Something went wrong."), { status: response.status });
  return content;
}

// ── What the codes of teamturn mean for the person who asks ─────────────────────────────────────────────────────────

const SENTENCES = {
  session_busy: "This conversation is still being answered, in another window perhaps. Wait for it, or stop it.",
  session_paused: "This conversation waits for a decision. Decide first, then ask on.",
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
    const text = given == null || typeof given === "string" ? (given ?? "") : JSON.stringify(given);
    const plain = given && typeof given === "object" && !Array.isArray(given);
    this.hint.textContent = plain ? Object.values(given).map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join(", ") : text;
    this.body.append(el("h4", {}, "Called with"), el("pre", {}, el("code", {}, plain ? JSON.stringify(given, null, 2) : text || "nothing")));
    return this;
  }

  returned(result) {
    if (result != null) this.body.append(el("h4", {}, "Returned"), el("pre", {}, el("code", {}, String(result))));
    return this;
  }
}

class Turn {
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

  apply(event) {
    if (event.type === "gateway_waits") this.say(event.message);
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
    step.prose.set("");
    step.become("working");
    this.say(`${event.member_id} is at work …`);
  }

  member_finished(event) {
    this.byId.get(event.member_run_id)?.become(STATES[event.status] ?? "done");
    this.say("Thinking …");
  }

  tool_call_started(event, within) {
    const known = this.byId.has(event.call_id);
    const step = this.add(event.call_id, "tool", event.tool, within);
    if (!known) step.called(event.arguments);
    step.become("working");
    this.say(`Calling ${event.tool} …`);
  }

  tool_call_finished(event) {
    this.byId.get(event.call_id)?.become(event.failed ? "failed" : "done");
    this.say("Thinking …");
  }

  custom(event) {
    if (typeof event.data === "string") this.say(event.data);
  }

  run_finished(event) {
    this.id = event.run_id;
    this.show(event.reply);
    if (event.reply.status === "COMPLETED") page.said.textContent = "The answer is there.";
  }

  /** Return the step of an id, a new one at the end of what its parent, or the turn, has done. */
  add(id, kind, name, parent) {
    if (!this.byId.has(id)) {
      const step = new Step(kind, name);
      if (!parent && this.prose.text.trim()) {
        // What the leader said before it called somebody.
        this.steps.append(el("li", { class: "said" }, el("div", { class: "prose" }, render(this.prose.text))));
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
    for (const step of this.byId.values()) if (step.node.dataset.state === "working") step.become("stopped");
    if (content != null) this.prose.set(textOf(content));
    this.prose.draw();
    const parts = [];
    if (status === "CANCELLED") parts.push(el("p", {}, "Stopped."));
    else if (status === "PAUSED") parts.push(this.approvals(approvals ?? []));
    else if (error) parts.push(el("p", { class: "bad" }, sentenceOf(error)));
    if (["ERROR", "REJECTED"].includes(status) && this.text) parts.push(againButton(this));
    if (status === "COMPLETED" && content != null) parts.push(copyButton(() => this.prose.text), took(metrics));
    this.foot.replaceChildren(...parts);
  }

  fail(message) {
    this.node.dataset.state = "error";
    this.foot.replaceChildren(el("p", { class: "bad" }, message), ...(this.text ? [againButton(this)] : []));
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
          if (decisions.size === asked.length) this.decide([...decisions.values()], list);
        });
        return button;
      });
      const foot = el("div", { class: "decide" }, ...buttons, reason);
      const who = one.member_id ? `${one.member_id}: ${one.tool}` : one.tool;
      const given = el("pre", {}, el("code", {}, JSON.stringify(one.arguments ?? {}, null, 2)));
      list.append(el("div", { class: "approval" }, el("strong", {}, who), given, foot));
    }
    return list;
  }

  async decide(decisions, list) {
    try {
      await ask({ session_id: shown.id, continues: this.id, decisions }, "");
    } catch (error) {
      list.append(el("p", { class: "bad" }, error.message));
    }
  }
}

const STATES = { COMPLETED: "done", ERROR: "failed", CANCELLED: "stopped", PAUSED: "paused" };

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
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function againButton(turn) {
  const button = el("button", { type: "button", class: "again" }, "Ask again");
  button.addEventListener("click", () => send(turn.text));
  return button;
}

// ── Asking, and following an answer ─────────────────────────────────────────────────────────────────────────────────

/** What was asked and has no answer yet, by conversation: for a reload when the gateway knows nothing of it any more. */
const pending = {
  key: (id) => `pending ${id}`,
  of: (id) => JSON.parse(sessionStorage.getItem(pending.key(id)) ?? "null"),
  keep: (id, request) => sessionStorage.setItem(pending.key(id), JSON.stringify(request)),
  drop: (id) => sessionStorage.removeItem(pending.key(id)),
};

async function send(text) {
  if (!text.trim() || shown.running) return false;
  trouble("");
  try {
    await ask({ session_id: shown.id, team: shown.team ?? page.teams.value, text }, text);
    return true;
  } catch (error) {
    trouble(error.message);
    return false;
  }
}

/** Post a message or decisions, and follow the answer. */
async function ask(request, text) {
  page.send.disabled = true;
  try {
    const begun = await call("/api/messages", request);
    const known = { ...request, session_id: begun.session_id, run_id: begun.run_id, team: begun.team };
    pending.keep(begun.session_id, known);
    if (shown.id === null) {
      shown = { id: begun.session_id, team: begun.team, running: null };
      history.pushState(null, "", `/c/${begun.session_id}`);
      head(begun.title, begun.team);
    }
    const turn = new Turn({ text, request: known });
    append(turn);
    follow(turn, begun.session_id, begun.run_id);
    loadSessions();
  } finally {
    page.send.disabled = false;
  }
}

/** Show a run's events until its end. The browser itself comes again after a break, behind the last event it has seen. */
function follow(turn, session_id, run_id, tries = 0) {
  turn.say("Waiting for a worker …");
  const source = new EventSource(`/api/sessions/${session_id}/runs/${run_id}/events`);
  const end = () => {
    source.close();
    if (shown.running?.source !== source) return;
    shown.running = null;
    busy();
  };
  shown.running = { turn, source, session_id, run_id };
  busy();
  source.onmessage = ({ data }) => {
    tries = 0;
    const event = JSON.parse(data);
    turn.apply(event);
    if (event.type !== "run_finished" && event.type !== "gateway_failed") return;
    if (event.type === "run_finished") pending.drop(session_id);
    end();
    loadSessions();
  };
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) return turn.say("The connection is lost. Trying again …");
    // The gateway does not know the run any more: it is asked for again, and not executed again.
    if (shown.running?.source !== source) return;
    try {
      if (tries >= 5 || !turn.request) throw new Error("The answer can't be followed. Reload the page in a moment.");
      await new Promise((resolve) => setTimeout(resolve, 300 * tries ** 2));
      await call("/api/messages", turn.request);
      if (shown.running?.source === source) follow(turn, session_id, run_id, tries + 1);
    } catch (error) {
      turn.fail(error.message);
      end();
    }
  };
}

async function stop() {
  if (!shown.running || page.stop.disabled) return;
  const { session_id, run_id, turn } = shown.running;
  page.stop.disabled = true;
  turn.say("Stopping …");
  try {
    await call(`/api/sessions/${session_id}/runs/${run_id}/cancel`, {});
  } catch (error) {
    trouble(error.message);
    page.stop.disabled = false;
  }
}

// ── Conversations ───────────────────────────────────────────────────────────────────────────────────────────────────

/** Show a conversation as it is stored, and go on with what is being answered; null shows an empty one. */
async function open(id) {
  shown.running?.source.close();
  shown = { id, team: null, running: null };
  page.turns.replaceChildren();
  trouble("");
  drawer(false);
  busy();
  head(id ? "…" : "New chat", null);
  mark();
  if (id === null) return page.message.focus();
  try {
    const found = await call(`/api/sessions/${id}`);
    if (shown.id !== id) return;
    shown.team = found.team;
    head(found.title, found.team);
    for (const run of found.turns) append(Turn.stored(run), "end");
    for (const run of found.running) {
      const turn = new Turn({ text: run.text, request: pending.of(id) });
      append(turn);
      follow(turn, id, run.run_id);
    }
    await resume(id, found);
  } catch (error) {
    if (shown.id !== id) return;
    const waiting = error.status === 404 && pending.of(id);
    if (waiting) return resume(id, { turns: [], running: [] }).catch((again) => trouble(again.message));
    head("Not found", null);
    trouble(error.message);
  }
}

/** Ask again for what this window has asked, and neither Postgres nor the gateway know. */
async function resume(id, found) {
  const request = pending.of(id);
  if (!request) return;
  const known = (run) => run.run_id === request.run_id;
  if (found.turns.some(known)) return pending.drop(id);
  if (found.running.some(known)) return;
  const begun = await call("/api/messages", request);
  if (shown.id !== id) return;
  shown.team = begun.team;
  if (begun.title) head(begun.title, begun.team);
  const turn = new Turn({ text: request.text ?? "", request });
  append(turn);
  follow(turn, id, begun.run_id);
}

let polling = 0;
let loads = 0;

async function loadSessions() {
  const load = ++loads;
  let found;
  try {
    found = await call("/api/sessions");
  } catch (error) {
    return trouble(error.message);
  }
  if (load !== loads) return; // a later one knows better
  if (page.teams.options.length === 0) page.teams.append(...found.teams.map((team) => el("option", { value: team }, team)));
  page.sessions.replaceChildren(
    ...found.sessions.map((one) => {
      const link = el("a", { href: `/c/${one.session_id}` }, el("span", { class: "name" }, one.title ?? "Without a name"));
      if (one.answering) link.append(el("span", { class: "dot", title: "is being answered" }));
      else if (one.active_at) link.append(el("time", {}, when(one.active_at)));
      return el("li", {}, link);
    }),
  );
  page["no-sessions"].hidden = found.sessions.length > 0;
  mark();
  head(page.title.textContent, shown.team);
  clearTimeout(polling);
  if (found.sessions.some((one) => one.answering && one.session_id !== shown.id)) polling = setTimeout(loadSessions, 3000);
}

function when(seconds) {
  const ago = Date.now() / 1000 - seconds;
  if (ago < 60) return "now";
  if (ago < 3600) return `${Math.floor(ago / 60)} min`;
  if (ago < 86_400) return `${Math.floor(ago / 3600)} h`;
  return new Date(seconds * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}

function mark() {
  for (const link of page.sessions.querySelectorAll("a")) {
    if (link.pathname === `/c/${shown.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// ── The frame ───────────────────────────────────────────────────────────────────────────────────────────────────────

function head(title, team) {
  page.title.textContent = title ?? "Without a name";
  document.title = shown.id ? `${page.title.textContent} · teamturn chat` : "teamturn chat";
  page.team.textContent = team ?? "";
  page.empty.hidden = shown.id !== null;
  page.choice.hidden = shown.id !== null || page.teams.options.length < 2;
}

function busy() {
  page.stop.hidden = !shown.running;
  page.stop.disabled = false;
  page.send.hidden = Boolean(shown.running);
  page.turns.setAttribute("aria-busy", String(Boolean(shown.running)));
}

function trouble(sentence) {
  page.trouble.textContent = sentence;
  page.trouble.hidden = !sentence;
}

function append(turn) {
  page.empty.hidden = true;
  page.turns.append(turn.node);
  page.thread.scrollTop = page.thread.scrollHeight;
}

const atEnd = () => page.thread.scrollHeight - page.thread.scrollTop - page.thread.clientHeight < 60;

/** Change the thread, and stay at its end if that is what is looked at. */
function following(change) {
  const stays = atEnd();
  change();
  if (stays) page.thread.scrollTop = page.thread.scrollHeight;
  else page.latest.hidden = atEnd();
}

function drawer(isOpen) {
  document.body.classList.toggle("drawer", isOpen);
  page.menu.setAttribute("aria-expanded", String(isOpen));
  // Out of sight is out of reach of the keyboard, too.
  page.drawer.inert = !isOpen && narrow.matches;
}

const narrow = matchMedia("(max-width: 760px)");
narrow.addEventListener("change", () => drawer(false));

page.menu.addEventListener("click", () => {
  drawer(!document.body.classList.contains("drawer"));
  if (document.body.classList.contains("drawer")) page.new.focus();
});
page.backdrop.addEventListener("click", () => drawer(false));
page.thread.addEventListener("scroll", () => (page.latest.hidden = atEnd()), { passive: true });
page.latest.addEventListener("click", () => page.thread.scrollTo({ top: page.thread.scrollHeight, behavior: "smooth" }));
page.stop.addEventListener("click", stop);

page.composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = page.message.value;
  if (await send(text)) page.message.value = "";
});
page.message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.composer.requestSubmit();
});
for (const button of page.empty.querySelectorAll("button")) button.addEventListener("click", () => send(button.textContent));

document.addEventListener("keydown", (event) => {
  const writing = ["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement?.tagName);
  if (event.key === "Escape" && document.body.classList.contains("drawer")) drawer(false), page.menu.focus();
  else if (event.key === "Escape") stop();
  else if (event.key === "/" && !writing) event.preventDefault(), page.message.focus();
  else if (event.altKey && event.code === "KeyN") event.preventDefault(), page.new.click();
});

// Links within the page open conversations without loading it again.
document.addEventListener("click", (event) => {
  const link = event.target.closest("#sessions a, #new");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (location.pathname !== link.pathname) history.pushState(null, "", link.pathname);
  openPlace();
});
addEventListener("popstate", openPlace);

function openPlace() {
  return open(location.pathname.startsWith("/c/") ? decodeURIComponent(location.pathname.slice(3)) : null);
}

loadSessions();
openPlace();
