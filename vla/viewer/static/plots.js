// Charts over the control steps of an episode, with a cursor at the moment that is shown. Canvas, in the page's colours.
"use strict";

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PALETTE = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
const MARGIN = { left: 40, right: 74, top: 8, bottom: 18 };

function surface(canvas) {
  const ratio = Math.min(2, window.devicePixelRatio || 1), [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return { pen, width, height };
}

class Plot {
  // `kind` is "lines" or "cells"; `onseek(t)` is called with the time that was clicked or dragged to.
  constructor(parent, title, note, kind, onseek) {
    this.box = document.createElement("figure");
    this.box.className = "plot";
    this.box.innerHTML = `<figcaption></figcaption><canvas></canvas>`;
    this.caption = this.box.firstChild; this.canvas = this.box.lastChild; this.kind = kind;
    this.caption.textContent = title;
    if (note) { const small = document.createElement("small"); small.textContent = note; this.caption.append(small); }
    parent.append(this.box);
    const seek = e => {
      if (e.type === "pointermove" && !e.buttons) return;
      const box = this.canvas.getBoundingClientRect(), span = box.width - MARGIN.left - MARGIN.right;
      onseek(Math.max(0, Math.min(1, (e.clientX - box.left - MARGIN.left) / span)) * this.length);
    };
    for (const kind of ["pointerdown", "pointermove"]) this.canvas.addEventListener(kind, seek);
  }
  set({ length, series, low, high, cells, starts, scale }) { Object.assign(this, { length, series, low, high, cells, starts, scale }); }

  draw(t) {
    const { pen, width, height } = surface(this.canvas);
    if (!width) return;
    this.x = v => MARGIN.left + (width - MARGIN.left - MARGIN.right) * v / Math.max(1, this.length);
    if (this.kind === "cells") this.drawCells(pen, height); else this.drawLines(pen, width, height);
    pen.fillStyle = colour("--soft"); pen.textAlign = "center";
    const step = [5, 10, 20, 50, 100, 200].find(s => this.length / s <= 8) || 500, every = this.length <= 8 ? 1 : step;
    for (let v = 0; v <= this.length; v += every) pen.fillText(v, this.x(v), height - 4);
    if (t === null) return;
    pen.strokeStyle = colour("--ink"); pen.lineWidth = 1; pen.globalAlpha = 0.75;
    pen.beginPath(); pen.moveTo(this.x(t), MARGIN.top - 4); pen.lineTo(this.x(t), height - MARGIN.bottom + 3); pen.stroke();
    pen.globalAlpha = 1;
  }

  drawLines(pen, width, height) {
    const values = this.series.flatMap(s => s.values.filter(v => v !== null));
    let low = this.low ?? Math.min(...values), high = this.high ?? Math.max(...values);
    if (!(high > low)) { low -= 0.5; high += 0.5; }
    const marks = rounds(low, high);
    low = marks[0]; high = marks.at(-1);
    const y = v => height - MARGIN.bottom - (height - MARGIN.bottom - MARGIN.top) * (v - low) / (high - low);
    pen.textAlign = "right";
    for (const v of marks) {
      pen.strokeStyle = colour("--line"); pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(MARGIN.left, y(v)); pen.lineTo(width - MARGIN.right, y(v)); pen.stroke();
      pen.fillStyle = colour("--soft"); pen.fillText(short(v), MARGIN.left - 5, y(v) + 4);
    }
    if (low < 0 && high > 0) { pen.strokeStyle = colour("--soft"); pen.globalAlpha = 0.5; pen.beginPath(); pen.moveTo(MARGIN.left, y(0)); pen.lineTo(width - MARGIN.right, y(0)); pen.stroke(); pen.globalAlpha = 1; }
    const labels = [];
    this.series.forEach((one, i) => {
      const ink = colour(one.colour || PALETTE[i % PALETTE.length]);
      pen.strokeStyle = ink; pen.lineWidth = one.thin ? 1.2 : 1.8; pen.setLineDash(one.dashed ? [4, 3] : []); pen.beginPath();
      let drawing = false;
      one.values.forEach((v, k) => {
        if (v === null) { drawing = false; return; }
        const from = one.at ? one.at[k] : k, to = one.at ? (one.at[k + 1] ?? this.length) : k;
        drawing ? pen.lineTo(this.x(from), y(v)) : pen.moveTo(this.x(from), y(v));
        if (one.at) pen.lineTo(this.x(to), y(v));
        drawing = true;
      });
      pen.stroke(); pen.setLineDash([]);
      const last = one.values.filter(v => v !== null).at(-1);
      if (last !== undefined && one.name) labels.push({ name: one.name, ink, y: y(last) });
    });
    labels.sort((a, b) => a.y - b.y);
    labels.forEach((l, i) => { if (i && l.y < labels[i - 1].y + 11) l.y = labels[i - 1].y + 11; });
    let floor = height - MARGIN.bottom;
    for (const l of [...labels].reverse()) { l.y = Math.min(l.y, floor); floor = l.y - 11; }
    pen.textAlign = "left";
    for (const l of labels) { pen.fillStyle = l.ink; pen.fillText(l.name, width - MARGIN.right + 6, l.y + 4); }
  }

  // cells[k] are the numbers of decision k, drawn as a column from starts[k] to the next; scale(v) gives [colour, alpha].
  drawCells(pen, height) {
    const foot = height - MARGIN.bottom, rows = Math.max(...this.cells.map(c => c.length)), size = (foot - MARGIN.top) / rows;
    this.cells.forEach((column, k) => {
      const [from, to] = [this.x(this.starts[k]), this.x(this.starts[k + 1] ?? this.length)];
      column.forEach((v, i) => {
        if (v === null) return;
        const [name, alpha] = this.scale(v);
        pen.fillStyle = colour(name); pen.globalAlpha = alpha;
        pen.fillRect(from, MARGIN.top + i * size, Math.max(1, to - from - 1), Math.max(0.6, size - (size > 3 ? 0.6 : 0)));
      });
    });
    pen.globalAlpha = 1; pen.fillStyle = colour("--soft"); pen.textAlign = "right";
    pen.fillText("first", MARGIN.left - 5, MARGIN.top + 8); pen.fillText("last", MARGIN.left - 5, foot);
  }
}

// Three to six round numbers (1, 2 or 5 times a power of ten) that cover low to high.
function rounds(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 2)), step = [1, 2, 5, 10].map(m => m * power).find(s => (high - low) / s <= 4);
  const from = Math.floor(low / step + 1e-9), to = Math.ceil(high / step - 1e-9);
  return Array.from({ length: to - from + 1 }, (_, i) => +((from + i) * step).toPrecision(12));
}

const short = v => Math.abs(v) >= 1000 ? v.toFixed(0) : String(+v.toPrecision(3));
