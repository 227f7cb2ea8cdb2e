"use strict";
// Draws the maps of experts, finds the expert a link names, and shows one cause where that is asked.
const DATA = JSON.parse(document.getElementById("data").textContent);
const WORDS = Object.fromEntries(JSON.parse(document.getElementById("states").textContent));
const COLOURS = {e: "--equal", d: "--differs", m: "--missing", p: "--misplaced", n: "--none"};
const WEIGHT = "enpdm";  // where one cell stands for several matrices, the last of these shows
const READABLE = 6, LARGEST = 32, PRINTED = 8, BAND = 128;  // pixels of a cell; smaller ones have no shapes
const GUTTER = {x: 34, y: 16};  // pixels, for the numbers of layers and experts
const ALL = "all";
const root = document.documentElement, details = document.getElementById("details");
let kept = false, filter = "";
root.classList.add("js");

const states = row => [...row.matchAll(/(\d+)([a-z])/g)].flatMap(([, n, s]) => Array(+n).fill(s));
function numbers(runs) {
  const row = [];
  for (let i = 0; i < runs.length; i += 2) row.push(...Array(runs[i]).fill(runs[i + 1]));
  return row;
}
function within(text, number) {
  return text.split(",").some(run => {
    const [first, last = first] = run.split("-").map(Number);
    return first <= number && number <= last;
  });
}
function element(tag, text, parent, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}
function button(text, title, parent, action) {
  const made = element("button", text, parent);
  Object.assign(made, {type: "button", title});
  made.addEventListener("click", action);
  return made;
}
const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
const worst = (a, b) => WEIGHT.indexOf(b) > WEIGHT.indexOf(a) ? b : a;

// --- Cells: a colour and a shape for each state

function palette() {
  const style = getComputedStyle(root), value = name => style.getPropertyValue(name).trim();
  const names = ["--ground", "--raised", "--text", "--quiet", "--ink", "--empty", "--choose", "--line"];
  const found = Object.fromEntries(names.map(name => [name.slice(2), value(name)]));
  for (const [state, name] of Object.entries(COLOURS)) found[state] = value(name);
  return found;
}
// Equal is plain, different has a stroke, missing a cross, misplaced a ring; what was not compared
// is an empty frame.
function cell(c, colours, state, x, y, size, faded) {
  const gap = size >= READABLE ? 1 : 0, s = size - gap;
  c.globalAlpha = faded ? .22 : 1;
  c.fillStyle = colours[state];
  c.fillRect(x, y, s, s);
  if (gap && state !== "e") {
    c.strokeStyle = state === "n" ? colours.empty : colours.ink;
    c.lineWidth = state === "n" ? 1 : Math.max(1, size / 9);
    c.beginPath();
    const [a, b] = [s * .22, s * .78];
    if (state === "n") c.rect(x + .5, y + .5, s - 1, s - 1);
    if (state === "d" || state === "m") { c.moveTo(x + a, y + b); c.lineTo(x + b, y + a); }
    if (state === "m") { c.moveTo(x + a, y + a); c.lineTo(x + b, y + b); }
    if (state === "p") c.arc(x + s / 2, y + s / 2, s / 4, 0, 7);
    c.stroke();
  }
  c.globalAlpha = 1;
}
function context(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  return c;
}
function swatch(state, parent) {
  const canvas = element("canvas", undefined, parent, "swatch");
  canvas.setAttribute("aria-hidden", "true");
  canvas.dataset.state = state;
  redrawSwatch(canvas);
}
function redrawSwatch(canvas) {
  const colours = palette(), c = context(canvas, 15, 15);
  cell(c, colours, canvas.dataset.state, 1, 1, 14, false);
  c.strokeStyle = colours.line;
  c.strokeRect(.5, .5, 14, 14);
}

// --- The map of one part: rows are layers, columns are experts

class Panel {
  constructor(row, map, parent) {
    const projections = Object.keys(map.states);
    Object.assign(this, {row, map, projections, shown: ALL, y: 0, x: 0, hover: null, pinned: null, focused: false});
    this.states = Object.fromEntries(projections.map(p => [p, map.states[p].map(states)]));
    this.causes = Object.fromEntries(projections.map(p => [p, map.causes[p].map(numbers)]));
    this.states[ALL] = map.layers.map((_, y) => Array.from({length: map.experts}, (_, x) =>
      projections.map(p => this.states[p][y][x]).reduce(worst)));
    this.figure = element("figure", undefined, parent);
    this.caption(element("figcaption", undefined, this.figure));
    this.overview = element("canvas", undefined, this.figure, "overview");
    this.overview.setAttribute("aria-hidden", "true");
    this.view = element("div", undefined, this.figure, "view");
    this.view.tabIndex = 0;
    this.view.dataset.part = map.part;
    this.view.setAttribute("role", "application");
    this.canvas = element("canvas", undefined, this.view);
    this.space = element("div", undefined, this.view);
    this.printed = element("div", undefined, this.figure, "whole");
    this.size = this.fitting(READABLE, 22);
    this.label();
    this.listen();
    this.layout();
  }
  caption(parent) {
    element("b", `${this.map.part}: ${this.map.layers.length} layers × ${this.map.experts} experts`, parent);
    const tabs = element("span", undefined, parent, "tabs");
    this.tabs = [ALL, ...this.projections].map(p => {
      const tab = button(p, p === ALL ? "the worst of each expert's matrices" : `${p} alone`, tabs, () => this.show(p));
      tab.dataset.projection = p;
      return tab;
    });
    const tools = element("span", undefined, parent, "tools");
    button("−", "smaller cells (-)", tools, () => this.zoom(-1));
    button("fit", "the whole map (0)", tools, () => this.zoom(0));
    button("+", "larger cells (+)", tools, () => this.zoom(1));
    button("next ›", "the next expert that is not equal (n)", tools, () => { this.next(1); this.view.focus(); });
    this.counts = element("span", undefined, parent, "legend quiet");
  }
  label() {
    const counts = {};
    for (const row of this.states[this.shown]) for (const s of row) counts[s] = (counts[s] || 0) + 1;
    this.counts.replaceChildren();
    for (const [state, words] of Object.entries(WORDS)) {
      if (!counts[state]) continue;
      const item = element("span", undefined, this.counts);
      swatch(state, item);
      item.append(`${counts[state].toLocaleString("fr").replaceAll("\u00a0", "\u202f")} ${words}`);
    }
    for (const tab of this.tabs) tab.setAttribute("aria-pressed", String(tab.dataset.projection === this.shown));
    const what = this.shown === ALL ? "all matrices" : this.shown;
    this.view.setAttribute("aria-label", `${this.map.part}, ${what}: ${this.map.layers.length} layers by ` +
      `${this.map.experts} experts, ${this.counts.innerText}. Arrow keys move, n goes to the next that is ` +
      "not equal, plus and minus zoom, Enter keeps.");
  }
  fitting(least, most) {
    const wide = (this.figure.clientWidth - GUTTER.x - 2) / this.map.experts;
    const high = (innerHeight * .72 - GUTTER.y) / this.map.layers.length;
    return Math.max(least, Math.min(most, Math.floor(Math.min(wide, high))));
  }
  layout() {
    const {map, size, view} = this;
    const width = GUTTER.x + map.experts * size, height = GUTTER.y + map.layers.length * size;
    this.space.style.width = `${width}px`;
    this.space.style.height = `${height}px`;
    this.canvas.style.width = this.canvas.style.height = "0";
    this.overview.hidden = false;
    this.cut = width > view.clientWidth + 1 || height > view.clientHeight + 1;
    this.overview.style.display = this.cut ? "" : "none";
    this.draw();
  }
  zoom(direction) {
    const {view, map} = this, before = this.size;
    const whole = Math.max(1, Math.min((this.figure.clientWidth - GUTTER.x - 2) / map.experts,
      (innerHeight * .74 - GUTTER.y - 2) / map.layers.length));
    if (!direction) this.size = whole >= 2 ? Math.floor(Math.min(whole, LARGEST)) : whole;
    else this.size = Math.max(1, Math.min(LARGEST, direction > 0 ? Math.ceil(before * 1.3 + .1) : Math.floor(before / 1.3)));
    const [x, y] = this.focused || kept ? [this.x, this.y] : [
      (view.scrollLeft + view.clientWidth / 2 - GUTTER.x) / before, (view.scrollTop + view.clientHeight / 2 - GUTTER.y) / before];
    this.layout();
    view.scrollLeft = x * this.size - (view.clientWidth - GUTTER.x) / 2;
    view.scrollTop = y * this.size - (view.clientHeight - GUTTER.y) / 2;
    this.draw();
  }
  show(projection) {
    this.shown = projection;
    this.label();
    this.draw();
    if (kept || this.focused) this.tell();
  }
  number(y, x) {  // of the diagnosis: of the projection shown, or of the first that has one
    const among = this.shown === ALL ? this.projections : [this.shown];
    for (const p of among) if (this.causes[p][y][x] >= 0) return this.causes[p][y][x];
    return -1;
  }
  faded(y, x) {
    if (!filter) return false;
    const {diagnoses} = DATA[this.row], among = this.shown === ALL ? this.projections : [this.shown];
    return !among.some(p => diagnoses[this.causes[p][y][x]]?.cause === filter);
  }
  draw() {
    const {view, map, size} = this, width = view.clientWidth, height = view.clientHeight;
    if (!width) return;
    const c = context(this.canvas, width, height), colours = palette();
    this.paint(c, colours, size, view.scrollLeft, view.scrollTop, width, height);
    const frame = (y, x, thick) => {
      c.strokeStyle = colours.choose;
      c.lineWidth = thick;
      const side = Math.max(size, 5);
      c.strokeRect(GUTTER.x + x * size - view.scrollLeft - 1, GUTTER.y + y * size - view.scrollTop - 1, side + 1, side + 1);
    };
    if (this.hover) frame(this.hover.y, this.hover.x, 1);
    if (this.focused || this.marked) frame(this.y, this.x, 2.5);
    if (this.cut) this.survey();
  }
  paint(c, colours, size, left, top, width, height) {
    const {map} = this, rows = this.states[this.shown];
    c.fillStyle = colours.ground;
    c.fillRect(0, 0, width, height);
    const first = {x: Math.max(0, Math.floor(left / size)), y: Math.max(0, Math.floor(top / size))};
    const last = {x: Math.min(map.experts, Math.ceil((left + width - GUTTER.x) / size)),
      y: Math.min(map.layers.length, Math.ceil((top + height - GUTTER.y) / size))};
    c.save();
    c.beginPath();
    c.rect(GUTTER.x, GUTTER.y, width - GUTTER.x, height - GUTTER.y);
    c.clip();
    for (let y = first.y; y < last.y; y++) for (let x = first.x; x < last.x; x++)
      cell(c, colours, rows[y][x], GUTTER.x + x * size - left, GUTTER.y + y * size - top, size, this.faded(y, x));
    c.restore();
    c.fillStyle = colours.quiet;
    c.font = "10px system-ui, 'DejaVu Sans', sans-serif";
    c.textBaseline = "middle";
    c.textAlign = "right";
    const step = {y: this.step(14 / size), x: this.step(30 / size)};
    for (let y = first.y; y < last.y; y++) if (y % step.y === 0) {
      const at = GUTTER.y + (y + .5) * size - top;
      if (at > GUTTER.y) c.fillText(map.layers[y], GUTTER.x - 5, at);
    }
    c.textAlign = "center";
    for (let x = first.x; x < last.x; x++) if (x % step.x === 0) {
      const at = GUTTER.x + (x + .5) * size - left;
      if (at > GUTTER.x) c.fillText(x, at, GUTTER.y / 2);
    }
  }
  step(least) { return [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].find(n => n >= least) || 1024; }
  survey() {  // the whole map in a strip, and the part of it that is in view
    const {overview, map, view, size} = this, width = this.figure.clientWidth - 2, height = 34;
    const c = context(overview, width, height), colours = palette(), rows = this.states[this.shown];
    const wide = width / map.experts, high = height / map.layers.length;
    const order = [...WEIGHT];  // what matters most is drawn last, over what shares its pixels
    for (const state of order) {
      c.fillStyle = colours[state];
      rows.forEach((row, y) => row.forEach((s, x) => {
        if (s === state && !(state !== "e" && this.faded(y, x)))
          c.fillRect(x * wide, y * high, Math.max(1, wide), Math.max(1, high));
      }));
    }
    c.strokeStyle = colours.choose;
    c.lineWidth = 2;
    const to = {x: wide / size, y: high / size};
    c.strokeRect(view.scrollLeft * to.x + 1, view.scrollTop * to.y + 1,
      Math.min(width - 2, (view.clientWidth - GUTTER.x) * to.x), Math.min(height - 2, (view.clientHeight - GUTTER.y) * to.y - 2));
  }
  at(event) {
    const box = this.view.getBoundingClientRect(), {view, size} = this;
    const x = Math.floor((event.clientX - box.left - view.clientLeft - GUTTER.x + view.scrollLeft) / size);
    const y = Math.floor((event.clientY - box.top - view.clientTop - GUTTER.y + view.scrollTop) / size);
    return {x: clamp(x, this.map.experts), y: clamp(y, this.map.layers.length)};
  }
  choose(y, x, keep, projection = null) {
    this.pinned = projection;
    if (keep) { kept = true; for (const panel of allPanels()) panel.marked = panel === this; }
    Object.assign(this, {x, y});
    this.reveal();
    this.draw();
    this.tell();
    if (keep) history.replaceState(null, "", this.address());
  }
  reveal() {
    const {view, size} = this;
    const into = (at, from, room) => at < from ? at - room * .1 : at + size > from + room ? at + size - room * .9 : from;
    view.scrollLeft = into(this.x * size, view.scrollLeft, view.clientWidth - GUTTER.x);
    view.scrollTop = into(this.y * size, view.scrollTop, view.clientHeight - GUTTER.y);
  }
  seek() {  // have the first expert that something is wrong with in view
    const rows = this.states[this.shown];
    for (let y = 0; y < rows.length; y++) for (let x = 0; x < rows[y].length; x++)
      if ("dmp".includes(rows[y][x]) && !this.faded(y, x)) {
        Object.assign(this, {x, y});
        const {view, size} = this;
        view.scrollLeft = x * size - view.clientWidth / 4;
        view.scrollTop = y * size - view.clientHeight / 4;
        return this.draw();
      }
  }
  next(by) {  // around the map, to the next expert that something is wrong with
    const {experts, layers} = this.map, rows = this.states[this.shown], count = experts * layers.length;
    const start = this.y * experts + this.x - (!this.looked && by > 0 ? 1 : 0);
    for (let n = 1; n <= count; n++) {
      const at = (start + by * n + 2 * count) % count, y = Math.floor(at / experts), x = at % experts;
      if ("dmp".includes(rows[y][x]) && !this.faded(y, x)) return this.choose(y, x, true);
    }
  }
  listen() {
    const {view} = this;
    view.addEventListener("scroll", () => this.draw(), {passive: true});
    view.addEventListener("mousemove", event => {
      this.hover = this.at(event);
      if (!kept) { Object.assign(this, this.hover, {pinned: null}); this.tell(); }
      this.draw();
    });
    view.addEventListener("mouseleave", () => { this.hover = null; this.draw(); });
    view.addEventListener("click", event => { const {x, y} = this.at(event); this.choose(y, x, true); });
    view.addEventListener("focus", () => { this.focused = true; this.draw(); if (!kept) this.tell(); });
    view.addEventListener("blur", () => { this.focused = false; this.draw(); });
    view.addEventListener("keydown", event => this.key(event));
    view.addEventListener("wheel", event => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1 : -1);
    }, {passive: false});
    this.overview.addEventListener("click", event => {
      const box = this.overview.getBoundingClientRect();
      view.scrollLeft = (event.clientX - box.left) / box.width * this.map.experts * this.size - view.clientWidth / 2;
      view.scrollTop = (event.clientY - box.top) / box.height * this.map.layers.length * this.size - view.clientHeight / 2;
    });
    new ResizeObserver(() => this.draw()).observe(view);
  }
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const {experts, layers} = this.map, moves = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
      Home: [-experts, 0], End: [experts, 0], PageUp: [0, -8], PageDown: [0, 8],
    }[event.key];
    if (moves) this.choose(clamp(this.y + moves[1], layers.length), clamp(this.x + moves[0], experts), kept);
    else if (event.key === "Enter") this.choose(this.y, this.x, true);
    else if (event.key === "Escape") { release(); this.draw(); }
    else if (event.key === "n" || event.key === "p") this.next(event.key === "n" ? 1 : -1);
    else if (event.key === "+" || event.key === "=") this.zoom(1);
    else if (event.key === "-") this.zoom(-1);
    else if (event.key === "0") this.zoom(0);
    else return;
    event.preventDefault();
  }
  projection() {  // the one shown or linked to; of all, the one that is worst
    if (this.shown !== ALL) return this.shown;
    if (this.pinned) return this.pinned;
    const {x, y} = this;
    return this.projections.reduce((a, b) => worst(this.states[a][y][x], this.states[b][y][x]) === this.states[a][y][x] ? a : b);
  }
  address(projection = this.projection()) {
    return `#s${this.row}/${this.map.part}/${this.map.layers[this.y]}/${this.x}/${projection}`;
  }
  tell() {
    this.looked = true;
    const {x, y, map} = this, {part} = map, layer = map.layers[y], projection = this.projection();
    const data = DATA[this.row], mine = one => one.part === part && one.projection === projection;
    details.replaceChildren();
    details.classList.remove("idle");
    element("h3", `${part} layer ${layer} expert ${x}`, details);
    const list = element("ul", undefined, details);
    for (const p of this.projections) {
      const link = element("a", undefined, element("li", undefined, list)), state = this.states[p][y][x];
      link.href = this.address(p);
      link.setAttribute("aria-current", String(p === projection));
      swatch(state, link);
      link.append(`${p}: ${WORDS[state]}` + (data.failed && state === "n" ? ", the load ended before" : ""));
    }
    const said = element("dl", undefined, details);
    const say = (name, text) => { element("dt", name, said); element("dd", text, said); };
    const number = this.causes[projection][y][x];
    if (number >= 0) {
      const {cause, summary, evidence, next, owner} = data.diagnoses[number];
      say("cause", `${summary} [${cause}]`); say("whose", owner); say("evidence", evidence); say("next step", next);
    }
    for (const d of data.differences.filter(d => mine(d) && d.layer === layer && d.expert === x)) {
      say("expected", d.reference + (d.source ? ` in ${d.source}` : "")); say("found", `${d.device}${d.on ? " on " + d.on : ""}`);
      if (d.total) say("unequal", `${d.count} of ${d.total} elements, first at [${d.index.join(", ")}]`);
    }
    const calls = data.calls.filter(c => mine(c) && within(c.layers, layer) && within(c.experts, x));
    const fill = text => text.replaceAll("{layer}", layer).replaceAll("{expert}", x);
    for (const c of calls) {
      const notes = [c.positional && "ids by position", c.late && "after processing", c.raised && "raised",
        c.times > 1 && `${c.times} times`].filter(Boolean).join(", ");
      say("loaded by", `${fill(c.call)} at ${c.site}, streaming ${fill(c.source)}${notes ? " (" + notes + ")" : ""}`);
    }
    if (!calls.length) say("loaded by", data.failed ? "nothing: the load ended before a weight_loader was called for it"
      : "nothing: no weight_loader was called for it");
    const link = element("a", "link to this expert", element("p", undefined, details));
    link.href = this.address();
  }
  print() {  // in bands of so many experts that cells stay readable on paper
    const {map} = this, width = GUTTER.x + Math.min(map.experts, BAND) * PRINTED, height = GUTTER.y + map.layers.length * PRINTED;
    this.printed.replaceChildren();
    for (let first = 0; first < map.experts; first += BAND) {
      const canvas = element("canvas", undefined, this.printed), c = context(canvas, width, height);
      this.paint(c, palette(), PRINTED, first * PRINTED, 0, width, height);
      canvas.style.width = canvas.style.height = "";
    }
  }
}

// --- Scenarios, links and the filter

const panels = new Map();
const allPanels = () => [...panels.values()].flat();
function release() {
  kept = false;
  for (const panel of allPanels()) panel.marked = false;
}
function open(number) {
  const section = document.getElementById(`s${number}`);
  if (!section) return [];
  for (const other of document.querySelectorAll("section.scenario")) other.classList.toggle("chosen", other === section);
  for (const line of document.querySelectorAll("nav li")) {
    line.classList.toggle("chosen", +line.dataset.row === number);
    if (+line.dataset.row === number) line.querySelector("a").setAttribute("aria-current", "true");
    else line.querySelector("a").removeAttribute("aria-current");
  }
  if (!panels.has(number)) {
    const parent = section.querySelector(".maps"), maps = (parent && DATA[number]?.maps) || [];
    panels.set(number, maps.map(map => new Panel(number, map, parent)));
    if (maps.length) {
      const keys = element("p", undefined, parent, "quiet keys");
      for (const [key, does] of [["arrows", "move"], ["n", "next that is not equal"], ["+ − 0", "zoom"], ["Enter", "keep"], ["Esc", "let go"]]) {
        element("kbd", key, keys);
        keys.append(` ${does}  `);
      }
    }
  }
  for (const panel of panels.get(number)) {
    panel.layout();
    panel.seek();
  }
  return panels.get(number);
}
function only(cause) {
  filter = cause;
  root.classList.toggle("filtered", Boolean(cause));
  for (const one of document.querySelectorAll("button.cause")) one.setAttribute("aria-pressed", String(one.dataset.cause === cause));
  let shown = 0;
  const lines = [...document.querySelectorAll("nav li")];
  for (const line of lines) {
    const fits = !cause || line.dataset.causes.split(" ").includes(cause);
    line.classList.toggle("off", !fits);
    shown += fits;
  }
  for (const one of document.querySelectorAll(".diagnoses li")) one.classList.toggle("off", Boolean(cause) && one.dataset.cause !== cause);
  const bar = document.querySelector(".filter");
  if (bar) {
    bar.hidden = !cause;
    bar.querySelector("span").textContent = `Only ${cause}` + (lines.length ? `: ${shown} of ${lines.length} scenarios.` : ".");
  }
  const chosen = document.querySelector("nav li.chosen");
  if (chosen?.classList.contains("off")) {
    const first = document.querySelector("nav li:not(.off)");
    if (first) { release(); open(+first.dataset.row); }
  }
  for (const panel of allPanels()) panel.seek();
  for (const panel of allPanels()) panel.draw();
}
function follow() {  // #s3, or #s3/decoder/12/48/gate_proj
  const [name, part, layer, expert, projection] = location.hash.slice(1).split("/");
  const asked = /^s\d+$/.test(name) && document.getElementById(name) ? +name.slice(1) : 0;
  release();
  const found = open(asked), panel = found.find(one => one.map.part === part);
  const y = panel ? panel.map.layers.indexOf(Number(layer)) : -1, x = Number(expert);
  if (!panel) {
    if (name) document.getElementById(`s${asked}`)?.scrollIntoView({block: "nearest"});
    return;
  }
  if (y < 0 || !(x >= 0 && x < panel.map.experts)) return;
  const one = panel.projections.includes(projection) ? projection : null;
  if (one && panel.shown !== ALL) panel.show(one);
  panel.choose(y, x, true, one);
  panel.figure.scrollIntoView({block: "nearest"});
}
for (const one of document.querySelectorAll("button.cause"))
  one.addEventListener("click", () => only(filter === one.dataset.cause ? "" : one.dataset.cause));
document.querySelector(".filter button")?.addEventListener("click", () => only(""));
const redraw = () => {
  for (const canvas of document.querySelectorAll("canvas.swatch")) redrawSwatch(canvas);
  for (const panel of allPanels()) panel.layout();
};
addEventListener("hashchange", follow);
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
// On paper a map is whole, and light.
addEventListener("beforeprint", () => {
  root.classList.add("printing");
  for (const canvas of document.querySelectorAll("canvas.swatch")) redrawSwatch(canvas);
  for (const panel of allPanels()) panel.print();
});
addEventListener("afterprint", () => { root.classList.remove("printing"); redraw(); });
follow();
