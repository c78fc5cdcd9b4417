// The page: a list of episodes with filters, a clock that all shown episodes share, one episode or two side by side.
"use strict";

const $ = id => document.getElementById(id);
const state = { episodes: [], shown: [], verdict: "all", source: "all", reason: null, why: {}, t: 0, playing: false, speed: 1, views: [] };

// Episodes come from this file (a page that was written to disk) or from the server that shows it.
const store = {
  embedded: JSON.parse($("episodes").textContent),
  get live() { return this.embedded === null; },
  async list() { return this.live ? (await fetch("api/episodes")).json() : this.embedded; },
  async episode(id) {
    if (!this.live) return this.embedded.details[id];
    const answer = await fetch("api/episode/" + id);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  },
  async why(id) {
    if (!this.live) return this.embedded.details[id].why;
    const answer = await fetch("api/why/" + id);
    return answer.ok ? answer.json() : null;
  },
};
const MOST_EXPLAINED = 60;  // failures: each is replayed without images

const label = e => e.stage.replaceAll("_", " ") + (e.iteration ? `, iteration ${e.iteration}` : "");

function selected() {
  return state.episodes.filter(e => (state.verdict === "all" || e.success === (state.verdict === "success")) && (state.source === "all" || label(e) === state.source));
}
const filtered = () => state.reason ? selected().filter(e => state.why[e.id]?.kind === state.reason) : selected();

function drawList() {
  const list = $("list"), rows = filtered();
  list.innerHTML = "";
  for (const e of rows) {
    const row = make("button", "row" + (state.shown.includes(e.id) ? " shown" : "")), stuck = stuckAt(e.reached);
    row.dataset.id = e.id;
    const how = e.success ? `done in ${e.control_steps}` : state.why[e.id]?.kind ?? `no ${stuck ?? "success"}`;
    row.append(make("i", e.success ? "good" : "bad"), make("b", "", `start ${e.seed}`), make("span", "", label(e)), make("span", "how", how));
    const beside = make("u", "", "compare"); beside.title = "show next to the other episode"; row.append(beside);
    row.onclick = event => open(e.id, event.shiftKey || event.target === beside);
    list.append(row);
  }
  $("count").textContent = `${rows.length} of ${state.episodes.length} episodes`;
  drawFunnel(selected());
  drawReasons();
  explain();
}

// Reasons of failure: the failures of the selection counted by reason; a click lists those of one reason.
function drawReasons() {
  const failures = selected().filter(e => !e.success), known = failures.filter(e => state.why[e.id]), counts = {};
  for (const e of known) (counts[state.why[e.id].kind] ??= []).push(e.id);
  const box = $("reasons"), order = Object.entries(counts).sort((a, b) => b[1].length - a[1].length);
  box.innerHTML = "";
  for (const [kind, ids] of order) {
    const row = make("button", state.reason === kind ? "on" : ""), track = make("span"), bar = make("i");
    bar.style.width = `${100 * ids.length / known.length}%`; track.append(bar);
    row.append(make("b", "", kind), make("em", "", `${ids.length}`), track); row.title = "list these episodes";
    row.onclick = () => { state.reason = state.reason === kind ? null : kind; drawList(); };
    box.append(row);
  }
  $("why").hidden = !failures.length;
  $("explained").textContent = known.length < failures.length ? `${known.length} of ${failures.length} failures diagnosed` : "";
}

// Failures are diagnosed one after another, the newest first, while the page is visible.
async function explain() {
  if (state.explaining) return;
  state.explaining = true;
  try {
    for (;;) {
      const failures = selected().filter(e => !e.success).slice(0, MOST_EXPLAINED), next = failures.find(e => !(e.id in state.why));
      if (!next) break;
      state.why[next.id] = await store.why(next.id).catch(() => null);
      const cell = document.querySelector(`.row[data-id="${CSS.escape(next.id)}"] .how`);
      if (cell && state.why[next.id]) cell.textContent = state.why[next.id].kind;
      drawReasons();
    }
  } finally { state.explaining = false; }
}

// Terms reached: the fraction of episodes that ever fulfilled each term of the task.
function drawFunnel(rows) {
  const names = [...new Set(rows.flatMap(e => Object.keys(e.reached)))], funnel = $("funnel");
  funnel.innerHTML = "";
  let worst = null, before = 1;
  const shares = names.map(name => rows.filter(e => (e.reached[name] ?? 0) > 0.5).length / Math.max(1, rows.length));
  names.forEach((name, i) => { if (worst === null || before - shares[i] > worst.drop) worst = { name, drop: before - shares[i] }; before = shares[i]; });
  names.forEach((name, i) => {
    const row = make("div", worst && worst.name === name && worst.drop > 0 ? "worst" : ""), bar = make("i");
    bar.style.width = `${100 * shares[i]}%`;
    const track = make("span"); track.append(bar);
    row.append(make("b", "", name), track, make("em", "", `${(100 * shares[i]).toFixed(0)} %`)); funnel.append(row);
  });
  $("lost").textContent = worst && worst.drop > 0 ? `Most episodes fail at “${worst.name}”.` : "";
}

function drawSources() {
  const names = ["all", ...new Set(state.episodes.map(label))], select = $("source");
  if (select.length === names.length) return;
  select.innerHTML = "";
  for (const name of names) select.append(new Option(name === "all" ? "all iterations and evaluations" : name, name));
  select.value = state.source;
}

async function open(id, beside = false) {
  state.shown = beside && state.shown.length ? [state.shown[0], id] : [id];
  location.hash = state.shown.join("+");
  $("waiting").hidden = false;
  try {
    const found = await Promise.all(state.shown.map(name => store.episode(name)));
    $("episodes-shown").innerHTML = ""; $("episodes-shown").className = found.length > 1 ? "two" : "one";
    state.views = found.map(e => new EpisodeView($("episodes-shown"), e, seek));
    if (found.length === 1) offerSibling(found[0]);
    $("time").max = Math.max(...state.views.map(view => view.last));
    seek(0); drawList();
  } catch (error) { $("episodes-shown").textContent = String(error); }
  $("waiting").hidden = true;
}

// Another episode from the same start, preferably with the other outcome, for comparison.
function offerSibling(e) {
  const same = state.episodes.filter(o => o.id !== e.id && o.seed === e.seed && label(o) === label(e));
  const other = same.find(o => o.success !== e.success) ?? same[0];
  if (!other) return;
  const button = make("button", "sibling", `compare with a ${other.success ? "success" : "failure"} from the same start`);
  button.onclick = () => open(other.id, true);
  state.views[0].root.querySelector(".asked").append(button);
}

function seek(t) {
  state.t = Math.max(0, Math.min(Number($("time").max), t));
  $("time").value = state.t; $("moment").textContent = `${Math.round(state.t)}`;
  for (const view of state.views) view.show(state.t);
}

function play(on = !state.playing) {
  if (on && state.t >= Number($("time").max)) seek(0);
  state.playing = on; $("play").textContent = on ? "❚❚" : "▶"; $("play").setAttribute("aria-label", on ? "pause" : "play");
  state.last = performance.now();
  if (on) requestAnimationFrame(tick);
}

function tick(now) {
  if (!state.playing) return;
  const rate = state.views[0]?.e.control_hz ?? 20;
  const before = Math.round(state.t);
  state.t = Math.min(Number($("time").max), state.t + (now - state.last) / 1000 * rate * state.speed); state.last = now;
  if (Math.round(state.t) !== before) seek(state.t);
  if (state.t >= Number($("time").max)) return play(false);
  requestAnimationFrame(tick);
}

// The next or previous decision of the first episode.
function jump(direction) {
  const starts = state.views[0]?.e.decisions.map(d => d.step) ?? [];
  const next = direction > 0 ? starts.find(s => s > state.t + 0.5) : starts.filter(s => s < state.t - 0.5).at(-1);
  if (next !== undefined) seek(next);
}

document.addEventListener("keydown", e => {
  if (e.target.tagName === "SELECT") return;
  const keys = { " ": () => play(), ArrowRight: () => seek(Math.round(state.t) + 1), ArrowLeft: () => seek(Math.round(state.t) - 1), "]": () => jump(1), "[": () => jump(-1) };
  if (keys[e.key]) { keys[e.key](); e.preventDefault(); }
});
$("play").onclick = () => play();
$("time").oninput = e => { play(false); seek(Number(e.target.value)); };
$("speed").onchange = e => { state.speed = Number(e.target.value); };
$("source").onchange = e => { state.source = e.target.value; state.reason = null; drawList(); };
for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => {
  state.verdict = button.dataset.verdict; state.reason = null;
  for (const other of document.querySelectorAll("[data-verdict]")) other.classList.toggle("on", other === button);
  drawList();
};
window.addEventListener("resize", () => seek(state.t));

async function refresh() {
  const { list: episodes, left_out } = await store.list();
  $("left-out").textContent = left_out.length ? `${left_out.length} damaged recordings are left out` : "";
  $("left-out").title = left_out.join("\n");
  if (episodes.length === state.episodes.length) return;
  state.episodes = episodes; drawSources(); drawList();
  if (!state.shown.length) await openFirst();
}

// The episode that the address names, else the newest failure.
async function openFirst() {
  const asked = location.hash.slice(1).split("+").filter(id => state.episodes.some(e => e.id === id));
  const start = asked[0] ?? (state.episodes.find(e => !e.success) ?? state.episodes[0])?.id;
  if (!start) return;
  await open(start);
  if (asked[1]) await open(asked[1], true);
}

async function begin() {
  await refresh();
  if (!state.shown.length) $("episodes-shown").textContent = store.live ? "No episode has been recorded yet; the first appears here." : "No episode was recorded.";
  if (store.live) setInterval(refresh, 3000);
  document.body.dataset.ready = "yes";
}
begin();
