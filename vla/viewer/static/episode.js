// One episode on the page: its cameras, its scene and the policy's numbers, all at one moment `t` (a control step).
"use strict";

const make = (tag, classes = "", text = "") => { const e = document.createElement(tag); e.className = classes; e.textContent = text; return e; };
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
const rgba = (name, alpha = 1) => {
  const hex = colour(name).replace("#", "");
  return [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255).concat(alpha);
};

// The term at which an episode failed: the first of the task, in its order, that was never fulfilled.
function stuckAt(reached) {
  const open = Object.entries(reached).find(([, best]) => best <= 0.5);
  return open ? open[0] : null;
}

function diagnosis(e) {
  const steps = Object.entries(e.terms).map(([name, values]) => [name, values.findIndex(v => v > 0.5)]);
  const done = steps.filter(([, at]) => at >= 0).map(([name, at]) => `${name} at ${at}`).join(", ");
  if (e.success) return `Done in ${e.reward.length} control steps: ${done}.`;
  const missing = steps.find(([, at]) => at < 0)?.[0] ?? "success";
  const far = done ? `Got as far as ${done}; then never “${missing}”.` : `Never reached “${missing}”.`;
  return e.why ? `${far} ${e.why.text}` : far;
}

function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

class Camera {
  constructor(parent, name, film) {
    const box = make("figure", "camera");
    this.canvas = make("canvas"); this.canvas.width = film.width; this.canvas.height = film.height;
    box.append(this.canvas, make("figcaption", "", name)); parent.append(box);
    this.film = film; this.image = new Image(); this.image.onload = () => this.draw(this.t ?? 0); this.image.src = film.data;
  }
  draw(t) {
    this.t = t;
    if (!this.image.complete) return;
    const { width, height, columns } = this.film, tile = Math.floor(t);
    this.canvas.getContext("2d").drawImage(this.image, (tile % columns) * width, Math.floor(tile / columns) * height, width, height, 0, 0, width, height);
  }
}

class EpisodeView {
  constructor(parent, episode, onseek) {
    this.e = episode; this.last = episode.hand.length - 1;
    this.root = make("article", "episode"); parent.append(this.root);
    this.header(); this.stage(); this.plots(onseek);
  }

  header() {
    const e = this.e, head = make("header", "asked");
    head.append(make("h2", "", e.instruction), make("span", `verdict ${e.success ? "good" : "bad"}`, e.success ? "success" : "failure"));
    const facts = [`start ${e.seed}`, `${e.stage.replaceAll("_", " ")}${e.iteration ? `, iteration ${e.iteration}` : ""}`, e.decoding, `return ${number(e.return)}`, `${e.reward.length} control steps`, `${e.decisions.length} decisions`];
    head.append(make("p", "facts", facts.join("  ·  ")), make("p", "diagnosis", diagnosis(e)));
    if (!e.faithful) head.append(make("p", "warning", "The simulator has changed since this episode was recorded: the replay has another outcome and is not the recorded episode."));
    this.root.append(head);
  }

  stage() {
    const row = make("div", "stage"), canvas = make("canvas", "scene"); row.append(canvas);
    this.scene = new Scene(canvas);
    if (this.scene.works) this.scene.load(this.e.shapes, unpack(this.e.poses), this.e.num_bodies);
    else canvas.replaceWith(make("p", "warning", "This browser shows no WebGL: the 3-D view is left out."));
    const side = make("div", "cameras"); row.append(side);
    this.cameras = Object.entries(this.e.films).map(([name, film]) => new Camera(side, name, film));
    this.readout = make("div", "readout"); side.append(this.readout);
    this.root.append(row);
  }

  plots(onseek) {
    const e = this.e, T = this.last, grid = make("div", "plots"); this.root.append(grid);
    const starts = e.decisions.map(d => d.step), per = name => e.decisions.map(d => first(d[name]));
    const add = (title, note, kind, content) => { const plot = new Plot(grid, title, note, kind, onseek); plot.set({ length: T, starts, ...content }); (this.all ??= []).push(plot); };
    add("Task", "best so far of every term", "lines", { low: 0, high: 1, series: Object.entries(e.terms).map(([name, values]) => ({ name, values })) });
    const gaps = Object.entries(e.targets).map(([name, places]) => ({ name: `to ${name.split(" ").at(-1)}`, values: places.map((p, i) => 100 * distance(p, e.hand[i])) }));
    add("Hand", "cm: distances, and between the fingers", "lines", { low: 0, series: [...gaps, { name: "fingers", values: e.opening.map(v => 100 * v) }] });
    const thought = [["value", "value"], ["advantage", "advantage"]].filter(([key]) => e.decisions.some(d => d[key] !== null));
    const series = thought.map(([key, name]) => ({ name, values: per(key), at: starts }));
    add("Reward, value, advantage", "a decision", "lines", { series: [{ name: "reward", values: summed(e), at: starts, thin: true }, ...series] });
    if (e.decisions.some(d => d.chosen.some(Boolean))) add("Log-prob of every draw", "by decision; dark: unlikely", "cells", { cells: e.decisions.map(d => masked(d.logprobs, d.chosen)), scale: likelihoods(e) });
    if (e.decisions.some(d => d.ratio)) add("Ratio after the update", "orange: more likely, blue: less likely", "cells", { cells: e.decisions.map(d => masked(d.ratio ?? [], d.chosen)), scale: v => [v > 1 ? "--c1" : "--c0", Math.min(1, 0.04 + Math.abs(Math.log(v)) / 0.3)] });
    for (const axis of [0, 1, 2]) add(`${e.names[axis]}: planned and executed`, "cm a control step", "lines", { series: [
      { name: "planned", values: e.reward.map((_, t) => 100 * this.planned(t)[axis]), colour: "--c1" },
      { name: "executed", values: e.reward.map((_, t) => 100 * (e.hand[t + 1][axis] - e.hand[t][axis])), colour: "--c0" }] });
    const grip = e.names.indexOf("gripper"), wide = 100 * Math.max(...e.opening);
    if (grip >= 0) add("Gripper: commanded and measured", "cm between the fingers", "lines", { low: 0, series: [
      { name: "commanded", values: e.reward.map((_, t) => this.planned(t)[grip] > 0 ? 0 : wide), colour: "--c1" },
      { name: "measured", values: e.opening.slice(1).map(v => 100 * v), colour: "--c0" }] });
    if (e.decisions.some(d => d.chain)) this.chain = new Plot(grid, "Denoising of this decision", "displacement in cm, from noise (left) to actions", "lines", () => {});
  }

  // From noise to actions: displacement of the current chunk along each axis, for each step of the chain.
  drawChain(d) {
    if (!this.chain || !d?.chain) return;
    const lead = axis => d.chain.map(chunk => 100 * chunk.reduce((sum, move) => sum + move[axis], 0));
    const series = [0, 1, 2].map(axis => ({ name: this.e.names[axis], values: lead(axis) }));
    this.chain.set({ length: d.chain.length - 1, starts: [], series });
    this.chain.draw(null);
  }

  planned(t) { const d = this.e.decisions[this.e.decision[t]]; return d.action[Math.min(t - d.step, d.action.length - 1)]; }

  decisionAt(t) { return this.e.decisions[this.e.decision[Math.min(t, this.e.decision.length - 1)] ?? 0]; }

  show(moment) {
    const e = this.e, t = Math.min(this.last, Math.max(0, Math.round(moment))), d = this.decisionAt(t);
    for (const camera of this.cameras) camera.draw(t);
    const paths = [{ points: e.hand.slice(0, t + 1), colour: rgba("--c0", 0.9), radius: 0.0018 }];
    if (d) paths.push({ points: d.path, colour: rgba("--c1"), radius: 0.0026 });
    if (d?.chain) d.chain.forEach((chunk, k) => paths.push({ points: walked(d.path[0], chunk), colour: rgba("--c4", 0.15 + 0.6 * k / d.chain.length), radius: 0.001 }));
    this.scene.draw(t, paths, rgba("--faint").slice(0, 3));
    this.write(t, d);
    for (const plot of this.all) plot.draw(t);
    this.drawChain(d);
  }

  write(t, d) {
    const e = this.e, rows = [["step", `${t} of ${this.last}`], ["decision", d ? `${e.decisions.indexOf(d) + 1} of ${e.decisions.length}` : "–"]];
    rows.push(["hand", e.hand[t].map(v => (100 * v).toFixed(1)).join("  ") + " cm"], ["fingers", `${(100 * e.opening[t]).toFixed(1)} cm`]);
    if (d?.value != null) rows.push(["value", number(first(d.value))]);
    if (d?.advantage != null) rows.push(["advantage", number(first(d.advantage))]);
    if (d?.chosen.some(Boolean)) rows.push(["log-prob", number(d.logprobs.reduce((a, b, i) => a + b * d.chosen[i], 0)) + " nats, all draws"]);
    if (d?.ratio) rows.push(["ratio", `${Math.min(...d.ratio).toFixed(2)} to ${Math.max(...d.ratio).toFixed(2)}`]);
    this.readout.innerHTML = "";
    for (const [name, value] of rows) this.readout.append(make("span", "", name), make("b", "", value));
  }
}

const first = v => Array.isArray(v) ? v.reduce((a, b) => a + b, 0) / v.length : v;
const number = v => v === null ? "–" : v.toFixed(Math.abs(v) >= 10 ? 1 : 3);
// How dark a draw is: a probability by its log (5 nats are black), a density, which has no bound, within its episode.
function likelihoods(e) {
  const all = e.decisions.flatMap(d => masked(d.logprobs, d.chosen)).filter(v => v !== null), high = Math.max(...all), low = Math.min(...all);
  return high <= 0 ? v => ["--c0", Math.min(1, 0.06 - v / 5)] : v => ["--c0", 0.08 + 0.9 * (high - v) / Math.max(1e-6, high - low)];
}
const masked = (values, chosen) => values.map((v, i) => chosen[i] ? v : null);
const summed = e => e.decisions.map((d, k) => e.reward.filter((_, t) => e.decision[t] === k).reduce((a, b) => a + b, 0));
// A chunk of moves as positions, from the last commanded position of the hand.
function walked(from, chunk) {
  const points = [from];
  for (const move of chunk) points.push(points.at(-1).map((v, i) => v + move[i]));
  return points;
}
