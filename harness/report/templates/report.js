"use strict";
// Draws the maps of experts and tells what is known of the chosen one.
const DATA = JSON.parse(document.getElementById("data").textContent);
const WORDS = {e: "equal", d: "different", m: "missing", p: "misplaced", n: "not compared"};
const COLOURS = {e: "--equal", d: "--differs", m: "--missing", p: "--misplaced", n: "--none"};
const MARKED_FROM = 6;  // pixels: smaller cells have room for a colour alone
const details = document.getElementById("details");
let kept = false;

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
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Panel {
  constructor(scenario, map, projection, parent) {
    Object.assign(this, {scenario, map, projection, layer: 0, expert: 0, focused: false});
    this.states = map.states[projection].map(states);
    this.causes = map.causes[projection].map(numbers);
    this.width = Math.max(2, Math.min(16, Math.floor(900 / map.experts)));
    this.height = Math.max(3, Math.min(16, Math.floor(220 / map.layers.length)));
    const figure = element("figure", undefined, parent);
    element("figcaption", `${map.part} ${projection}: ${this.summary()}`, figure);
    this.canvas = element("canvas", undefined, figure);
    this.canvas.tabIndex = 0;
    this.canvas.dataset.panel = `${map.part} ${projection}`;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${map.part} ${projection}, ${map.layers.length} layers by ` +
      `${map.experts} experts: ${this.summary()}. Arrow keys move, Enter keeps.`);
    this.listen();
    this.draw();
  }
  summary() {
    const counts = {};
    for (const row of this.states) for (const s of row) counts[s] = (counts[s] || 0) + 1;
    return Object.entries(WORDS).filter(([s]) => counts[s]).map(([s, w]) => `${counts[s]} ${w}`).join(", ");
  }
  draw() {
    const {canvas, width, height, map} = this, scale = window.devicePixelRatio || 1;
    canvas.width = map.experts * width * scale;
    canvas.height = map.layers.length * height * scale;
    canvas.style.width = `${map.experts * width}px`;
    canvas.style.height = `${map.layers.length * height}px`;
    this.context = canvas.getContext("2d");
    this.context.scale(scale, scale);
    const colours = Object.fromEntries(Object.entries(COLOURS).map(([s, name]) => [s, colour(name)]));
    const gap = width >= MARKED_FROM && height >= MARKED_FROM ? 1 : 0;
    this.context.fillStyle = colour("--ground");
    this.context.fillRect(0, 0, map.experts * width, map.layers.length * height);
    this.states.forEach((row, y) => row.forEach((state, x) => {
      this.context.fillStyle = colours[state];
      this.context.fillRect(x * width, y * height, width - gap, height - gap);
      if (gap && state !== "e") this.mark(state, x * width, y * height);
    }));
    if (this.focused) this.outline();
  }
  mark(state, x, y) {  // a shape for each state: colour is not all that tells them apart
    const c = this.context, w = this.width - 1, h = this.height - 1;
    c.strokeStyle = colour(state === "n" ? "--line" : "--ink");
    c.lineWidth = 1;
    c.beginPath();
    if (state === "n") c.rect(x + .5, y + .5, w - 1, h - 1);
    if (state === "d" || state === "m") { c.moveTo(x + 1, y + h - 1); c.lineTo(x + w - 1, y + 1); }
    if (state === "m") { c.moveTo(x + 1, y + 1); c.lineTo(x + w - 1, y + h - 1); }
    if (state === "p") c.arc(x + w / 2, y + h / 2, Math.min(w, h) / 4, 0, 7);
    c.stroke();
  }
  outline() {
    const c = this.context;
    c.strokeStyle = colour("--choose");
    c.lineWidth = 2;
    c.strokeRect(this.expert * this.width, this.layer * this.height, this.width, this.height);
  }
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    this.expert = this.clamp(Math.floor((event.clientX - box.left) / this.width), this.map.experts);
    this.layer = this.clamp(Math.floor((event.clientY - box.top) / this.height), this.map.layers.length);
  }
  clamp(value, count) { return Math.max(0, Math.min(count - 1, value)); }
  listen() {
    this.canvas.addEventListener("mousemove", event => { if (!kept) { this.at(event); this.tell(); } });
    this.canvas.addEventListener("click", event => { kept = true; this.at(event); this.focused = true; this.draw(); this.tell(); });
    this.canvas.addEventListener("focus", () => { this.focused = true; this.draw(); if (!kept) this.tell(); });
    this.canvas.addEventListener("blur", () => { this.focused = false; this.draw(); });
    this.canvas.addEventListener("keydown", event => this.key(event));
  }
  key(event) {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if (event.key === "Enter") kept = true;
    else if (event.key === "Escape") kept = false;
    else if (event.key === "Home") this.expert = 0;
    else if (event.key === "End") this.expert = this.map.experts - 1;
    else if (moves[event.key]) {
      this.expert = this.clamp(this.expert + moves[event.key][0], this.map.experts);
      this.layer = this.clamp(this.layer + moves[event.key][1], this.map.layers.length);
    } else return;
    event.preventDefault();
    this.draw();
    this.tell();
  }
  tell() {
    const layer = this.map.layers[this.layer], {part} = this.map, {expert, projection} = this;
    const mine = one => one.part === part && one.projection === projection;
    const data = DATA[this.scenario], number = this.causes[this.layer][expert];
    details.replaceChildren();
    element("h3", `${part} layer ${layer} expert ${expert} ${projection}`, details);
    const list = element("dl", undefined, details);
    const say = (name, text) => { element("dt", name, list); element("dd", text, list); };
    const state = this.states[this.layer][expert];
    say("state", WORDS[state] + (data.failed && state === "n" ? ": the load ended before" : ""));
    if (number >= 0) {
      const {cause, summary, evidence, next} = data.diagnoses[number];
      say("cause", `${summary} [${cause}]`); say("evidence", evidence); say("next step", next);
    }
    for (const d of data.differences.filter(d => mine(d) && d.layer === layer && d.expert === expert)) {
      say("reference", `${d.reference} in ${d.source}`); say("device", `${d.device}${d.on ? " on " + d.on : ""}`);
      if (d.total) say("unequal", `${d.count} of ${d.total} elements, first at [${d.index.join(", ")}]`);
    }
    const calls = data.calls.filter(c => mine(c) && within(c.layers, layer) && within(c.experts, expert));
    const fill = text => text.replaceAll("{layer}", layer).replaceAll("{expert}", expert);
    for (const c of calls) {
      const notes = [c.positional && "ids by position", c.late && "after processing", c.raised && "raised",
        c.times > 1 && `${c.times} times`].filter(Boolean).join(", ");
      say("ledger", `${fill(c.call)} at ${c.site}, streaming ${fill(c.source)}${notes ? " (" + notes + ")" : ""}`);
    }
    if (!calls.length) say("ledger", data.failed ? "the load ended before a weight_loader was called for it"
      : "no call of a weight_loader for it");
  }
}

const panels = new Map();
function choose(number) {
  for (const section of document.querySelectorAll("section")) section.hidden = +section.dataset.row !== number;
  for (const row of document.querySelectorAll("nav tr[data-row]")) row.classList.toggle("chosen", +row.dataset.row === number);
  const section = document.querySelector(`section[data-row="${number}"]`);
  if (!section || panels.has(number)) return;
  const parent = section.querySelector(".maps"), made = [];
  panels.set(number, made);
  if (!DATA[number].maps.length) return;
  const legend = element("p", undefined, parent, "legend quiet");
  for (const [state, words] of Object.entries(WORDS)) {
    const item = element("span", undefined, legend);
    element("i", undefined, item).style.background = `var(${COLOURS[state]})`;
    item.append(words);
  }
  element("span", "rows are layers, columns are experts", legend);
  for (const map of DATA[number].maps)
    for (const projection of Object.keys(map.states)) made.push(new Panel(number, map, projection, parent));
}
function fromHash() {
  const asked = Number((location.hash.match(/^#s(\d+)$/) || [])[1] ?? -1);
  const bad = document.querySelector("nav tr.different, nav tr.failed");
  kept = false;
  choose(asked >= 0 ? asked : bad ? +bad.dataset.row : 0);
}
addEventListener("hashchange", fromHash);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const made of panels.values()) for (const panel of made) panel.draw();
});
fromHash();
