// The page: conversations on the left, one of them on the right. turn.js shows a turn, markdown.js what a model wrote.

import { Turn, atEnd, el, following } from "/static/turn.js";

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  ["drawer", "backdrop", "menu", "new", "sessions", "no-sessions", "title", "team", "thread", "empty", "turns", "latest"]
    .concat(["composer", "trouble", "message", "choice", "teams", "send", "stop", "said", "enter", "escape"])
    .map((id) => [id, $(id)]),
);

/** The conversation that is shown: its id (null: not begun), its team, and the turn that is being answered. */
let shown = { id: null, team: null, running: null };

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

// ── Asking, and following an answer ─────────────────────────────────────────────────────────────────────────────────

/** What was asked and has no answer yet, by conversation: for a reload when the gateway knows nothing of it any more. */
const pending = {
  key: (id) => `pending ${id}`,
  of: (id) => JSON.parse(sessionStorage.getItem(pending.key(id)) ?? "null"),
  keep: (id, request) => sessionStorage.setItem(pending.key(id), JSON.stringify(request)),
  drop: (id) => sessionStorage.removeItem(pending.key(id)),
};

function send(text) {
  return text.trim() ? post({ session_id: shown.id, team: shown.team ?? page.teams.value, text }, text) : false;
}

/** Post a message or decisions, and follow the answer. Return whether it was taken. */
async function post(request, text) {
  if (shown.running || page.send.disabled) return false;
  const here = shown;
  page.send.disabled = true;
  trouble("");
  try {
    const begun = await call("/api/messages", request);
    const known = { ...request, session_id: begun.session_id, run_id: begun.run_id, team: begun.team };
    pending.keep(begun.session_id, known);
    loadSessions();
    if (shown !== here) return true; // another conversation is looked at meanwhile
    if (shown.id === null) {
      shown = { id: begun.session_id, team: begun.team, running: null };
      history.pushState(null, "", `/c/${begun.session_id}`);
      head(begun.title, begun.team);
    }
    const turn = new Turn({ text, request: known });
    append(turn);
    follow(turn, begun.session_id, begun.run_id);
    mark();
    return true;
  } catch (error) {
    trouble(error.message);
    return false;
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
    if (event.reply?.status === "COMPLETED") page.said.textContent = "The answer is there.";
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
    if (found.earlier) page.turns.append(el("p", { class: "hint" }, "What was said before is stored, and not shown here."));
    for (const run of found.turns) append(Turn.stored(run));
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
      const link = el("a", { href: `/c/${one.session_id}`, title: one.title ?? "" }, el("span", { class: "name" }, one.title ?? "Without a name"));
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
  page.stop.hidden = page.escape.hidden = !shown.running;
  page.stop.disabled = false;
  page.send.hidden = page.enter.hidden = Boolean(shown.running);
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

page.turns.addEventListener("again", ({ detail }) => (detail.text ? send(detail.text) : post({ session_id: shown.id, ...detail }, "")));
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
  else if (event.key === "Escape" && !event.isComposing) stop();
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
