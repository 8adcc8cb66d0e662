"use strict";
const {panels, runs} = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const hidden = new Set();            // a run's number, or "run/metric"
let range = null;                    // the part of the axis zoomed to, shared by all charts
const PAD = {left: 62, right: 14, top: 16, bottom: 24}, COLORS = 6;
const DASHES = ["none", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"];

function svgNode(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}
function html(name, parent, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}
const axis = () => document.querySelector("input[name=axis]:checked").value;
function short(v) {
  const a = Math.abs(v);
  if (a >= 1e15 || (a !== 0 && a < 1e-3)) return v.toExponential(2).replace(/\.?0+e\+?/, "e");
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (a >= size) return `${+(v / (unit === "k" ? 1e3 : size)).toPrecision(4)}${unit}`;
  return a >= 1000 ? v.toLocaleString("en", {maximumFractionDigits: 0}) : String(+v.toPrecision(4));
}
function value(v) {
  return v === null ? "not finite" : Math.abs(v) >= 1e4 ? v.toLocaleString("en") : short(v);
}
function span(s) {
  const h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
  return h ? `${h} h ${m} min` : m ? `${m} min ${Math.floor(s % 60)} s` : `${+s.toFixed(1)} s`;
}
const place = x => axis() === "time" ? span(x) : `${axis() === "step" ? "step " : ""}`
  + `${x.toLocaleString("en")}${axis() === "tokens" ? " tokens" : ""}`;
function timeUnit(length) {
  return [[86400, "days", 3 * 86400], [3600, "h", 7200], [60, "min", 180], [1, "s", 0]]
    .find(u => length >= u[2]);
}
function ticks(lo, hi, count) {
  const raw = (hi - lo) / count, power = 10 ** Math.floor(Math.log10(raw)), out = [];
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * (1 - 1e-9));
  for (let v = Math.ceil(lo / step - 1e-9) * step; v <= hi + step * 1e-9; v += step)
    out.push(+v.toPrecision(12));
  return out;
}
function logTicks(lo, hi) {          // of exponents
  const out = [], many = hi - lo > 2.2;
  for (let e = Math.floor(lo); e <= hi; e += Math.max(1, Math.round((hi - lo) / 6)))
    for (const m of many ? [1] : hi - lo > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8])
      if (Math.log10(m) + e >= lo && Math.log10(m) + e <= hi) out.push(Math.log10(m) + e);
  return out.length > 1 ? out : ticks(lo, hi, 4);
}
function nearest(x, at) {            // among rising numbers, nulls left out beforehand
  let lo = 0, hi = x.length - 1;
  while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (x[mid] <= at) lo = mid; else hi = mid; }
  return at - x[lo] <= x[hi] - at ? lo : hi;
}
function linesOf(panel) {
  const along = axis(), level = +byId("smooth").value, lines = [];
  runs.forEach((run, r) => panel.metrics.forEach((metric, m) => {
    const s = run.series[metric.name];
    if (!s) return;
    const xs = along === "step" ? s.x : along === "tokens" ? s.k : s.t;
    const keep = [...xs.keys()].filter(i => xs[i] !== null);
    const even = level >= 0 && s.s ? keep.map(i => s.s[level][i]) : null;
    const one = runs.length === 1, look = one ? m : r;
    lines.push({key: `${r}/${metric.name}`, x: keep.map(i => xs[i]), y: keep.map(i => s.y[i]),
      part: keep.map(i => along === "time" ? `${s.g[i]}.${s.a[i]}` : s.g[i]), even,
      window: s.s && level >= 0 ? s.w[level] : 0, color: `c${look % COLORS}`,
      dash: DASHES[(one ? Math.floor(m / COLORS) + (metric.points ? 1 : 0)
        : Math.floor(r / COLORS) * 2 + m) % DASHES.length],
      points: metric.points, shown: !hidden.has(r) && !hidden.has(`${r}/${metric.name}`),
      left: xs.length - keep.length,
      label: one ? metric.label : panel.metrics.length > 1 ? `${run.name} · ${metric.label}`
        : run.name});
  }));
  return lines;
}
function scales(view, lines, width, height, log) {
  let xs = lines.flatMap(l => l.x.length ? [l.x[0], l.x[l.x.length - 1]] : []);
  let [x0, x1] = range || [Math.min(...xs), Math.max(...xs)];
  if (!(x1 > x0)) { x0 -= .5; x1 = x0 + 1; }
  let lo = Infinity, hi = -Infinity;
  for (const l of lines) for (const ys of l.even ? [l.y, l.even] : [l.y]) ys.forEach((v, i) => {
    if (v === null || l.x[i] < x0 || l.x[i] > x1 || (log && v <= 0)) return;
    lo = Math.min(lo, v); hi = Math.max(hi, v);
  });
  if (lo > hi) { lo = log ? 1 : 0; hi = 1; }
  if (log) { lo = Math.log10(lo); hi = Math.log10(hi); }
  else if (view.panel.zero) { lo = Math.min(0, lo); hi = Math.max(0, hi); }
  if (hi <= lo) { const gap = Math.abs(lo) * .1 || 1; lo -= gap; hi += gap; }
  const room = .05 * (hi - lo);
  hi += room;
  if (log || !view.panel.zero || lo < 0) lo -= room;
  const wide = width - PAD.left - PAD.right, high = height - PAD.top - PAD.bottom;
  return {x0, x1, lo, hi, x: s => PAD.left + (s - x0) / (x1 - x0) * wide,
    at: px => x0 + (px - PAD.left) / wide * (x1 - x0),
    y: v => height - PAD.bottom - ((log ? Math.log10(v) : v) - lo) / (hi - lo) * high};
}
function path(line, ys, scale, log) {
  let d = "", part = null;
  line.x.forEach((s, i) => {
    const v = ys[i];
    if (v === null || (log && v <= 0)) { part = null; return; }
    const at = `${scale.x(s).toFixed(1)} ${scale.y(v).toFixed(1)}`;
    const before = i > 0 && line.part[i - 1] === line.part[i] && part !== null;
    const after = i + 1 < line.x.length && line.part[i + 1] === line.part[i] && ys[i + 1] !== null;
    d += before ? `L${at}` : after ? `M${at}` : `M${at}h.01`;     // one alone is a dot
    part = line.part[i];
  });
  return d;
}
function draw(view) {
  const {svg, panel} = view, width = svg.clientWidth, height = svg.clientHeight;
  if (!width) return;                                              // closed
  const log = byId("log").checked && !panel.linear;
  const all = view.lines = linesOf(panel), lines = all.filter(l => l.shown && l.x.length);
  view.shown = lines;
  drawKeys(view, all);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  view.scale = null;
  const notes = [];
  if (!lines.length) {
    const why = all.some(l => l.shown) ? "not recorded along this axis" : "hidden";
    svgNode("text", {x: width / 2, y: height / 2, "text-anchor": "middle"}, svg, why);
    view.note.textContent = "";
    return;
  }
  const scale = view.scale = scales(view, lines, width, height, log);
  drawAxes(view, width, height, log);
  const clip = `clip${view.index}`;
  svgNode("rect", {x: PAD.left - 3, y: PAD.top - 3, width: width - PAD.left - PAD.right + 6,
    height: height - PAD.top - PAD.bottom + 6}, svgNode("clipPath", {id: clip}, svg));
  drawMarks(svg, scale, height, clip);
  const plot = svgNode("g", {"clip-path": `url(#${clip})`, fill: "none", stroke: "currentColor",
    "stroke-linejoin": "round", "stroke-linecap": "round"}, svg);
  let below = 0;
  for (const line of lines) {
    const g = svgNode("g", {class: line.color}, plot);
    if (line.even)
      svgNode("path", {d: path(line, line.y, scale, log), "stroke-opacity": .28}, g);
    svgNode("path", {d: path(line, line.even || line.y, scale, log), "stroke-width": 1.8,
      "stroke-dasharray": line.dash}, g);
    line.x.forEach((s, i) => {
      if (line.y[i] === null)
        svgNode("path", {d: `M${scale.x(s) - 3} ${height - PAD.bottom - 8}l6 6m0 -6l-6 6`,
          class: "broken", "stroke-width": 1.5}, g);
      else if (log && line.y[i] <= 0) below += 1;
      else if (line.points && line.x.length <= 100)
        svgNode("circle", {cx: scale.x(s), cy: scale.y(line.y[i]), r: 3, fill: "currentColor"}, g);
    });
    if (line.left) notes.push(`${line.label}: ${line.left} points have no token count`);
  }
  if (below) notes.push(`${below} values of 0 or less can't stand on a log scale`);
  if (!log && !panel.zero) notes.unshift("the axis does not begin at 0");
  view.note.textContent = notes.join(" · ");
  svg.setAttribute("aria-label", `${panel.title}. ${lines.map(spoken).join(" ")}`);
}
function spoken(line) {
  const known = [...line.y.keys()].filter(i => line.y[i] !== null);
  if (!known.length) return `${line.label}: nothing finite.`;
  const first = known[0], last = known[known.length - 1];
  return `${line.label}: ${value(line.y[first])} at ${place(line.x[first])}, `
    + `${value(line.y[last])} at ${place(line.x[last])}.`;
}
function drawAxes(view, width, height, log) {
  const {svg, scale} = view, bottom = height - PAD.bottom;
  for (const t of log ? logTicks(scale.lo, scale.hi) : ticks(scale.lo, scale.hi, height > 250 ? 7 : 4)) {
    const at = scale.y(log ? 10 ** t : t);
    svgNode("line", {class: "rule", x1: PAD.left, x2: width - PAD.right, y1: at, y2: at}, svg);
    svgNode("text", {x: PAD.left - 8, y: at + 4, "text-anchor": "end"}, svg,
      short(log ? +(10 ** t).toPrecision(3) : t));
  }
  const time = axis() === "time" ? timeUnit(scale.x1 - scale.x0) : [1, ""];
  svgNode("text", {x: 0, y: bottom + 16}, svg, {step: "step", tokens: "tokens", time: "time"}[axis()]);
  const marks = ticks(scale.x0 / time[0], scale.x1 / time[0], Math.max(2, Math.floor(width / 110)));
  for (const t of marks.filter(t => axis() === "time" || Number.isInteger(t)))
    svgNode("text", {x: scale.x(t * time[0]), y: bottom + 16, "text-anchor": "middle"}, svg,
      `${short(t)}${time[1] ? ` ${time[1]}` : ""}`);
}
function drawMarks(svg, scale, height, clip) {
  runs.forEach((run, r) => hidden.has(r) || run.marks.forEach(mark => {
    const at = axis() === "step" ? mark.step : axis() === "tokens" ? mark.tokens : mark.time;
    if (at === null || at < scale.x0 || at > scale.x1) return;
    const x = scale.x(at);
    const own = runs.length > 1 ? ` c${r % COLORS}` : "";
    const line = svgNode("line", {class: `mark ${mark.kind}${own}`, x1: x, x2: x, y1: PAD.top,
      y2: height - PAD.bottom, "clip-path": `url(#${clip})`}, svg);
    svgNode("text", {class: mark.kind + own, x, y: PAD.top - 4, "text-anchor": "middle"}, svg,
      mark.kind === "restart" ? "↻" : "⚑");
    svgNode("title", {}, line, mark.text);
  }));
}
function drawKeys(view, lines) {
  const focus = view.keys.contains(document.activeElement) ? document.activeElement.dataset.key : "";
  view.keys.replaceChildren();
  if (lines.length < 2) return;
  for (const line of lines) {
    const button = html("button", view.keys), icon = svgNode("svg", {class: line.color}, button);
    button.type = "button";
    button.dataset.key = line.key;
    svgNode("line", {x1: 0, x2: 24, y1: 4, y2: 4, stroke: "currentColor", "stroke-width": 2.5,
      "stroke-dasharray": line.dash}, icon);
    if (line.points) svgNode("circle", {cx: 12, cy: 4, r: 3, fill: "currentColor"}, icon);
    html("span", button, line.label);
    button.setAttribute("aria-pressed", String(line.shown));
    button.onclick = () => { flip(line.key); draw(view); };
    if (line.key === focus) button.focus();
  }
}
function flip(key) { if (!hidden.delete(key)) hidden.add(key); }
function showAt(view, at, client) {
  if (!view.scale) return;
  const longest = view.shown.reduce((a, b) => b.x.length > a.x.length ? b : a);
  const x = longest.x[nearest(longest.x, at)];
  view.at = x;
  leave();
  for (const other of views) if (other.scale && x >= other.scale.x0 && x <= other.scale.x1)
    other.cross = svgNode("line", {class: "cross", x1: other.scale.x(x), x2: other.scale.x(x),
      y1: PAD.top, y2: other.svg.clientHeight - PAD.bottom}, other.svg);
  const tip = byId("tip"), table = html("table");
  table.createCaption().textContent = place(x);
  for (const line of view.shown) {
    const i = nearest(line.x, x), row = table.insertRow(), name = row.insertCell();
    html("span", name).className = `swatch ${line.color}`;
    name.append(line.label + (line.x[i] === x ? "" : ` (${place(line.x[i])})`));
    row.insertCell().textContent = value(line.y[i]);
    row.insertCell().textContent = line.even && line.even[i] !== null
      ? `mean ≈${line.window}: ${value(line.even[i])}` : "";
  }
  tip.replaceChildren(table);
  tip.hidden = false;
  const right = client.x + 16 + tip.offsetWidth > innerWidth;
  tip.style.left = `${Math.max(4, right ? client.x - 16 - tip.offsetWidth : client.x + 16)}px`;
  tip.style.top = `${Math.max(4, Math.min(client.y + 12, innerHeight - tip.offsetHeight - 8))}px`;
}
function leave() {
  byId("tip").hidden = true;
  for (const view of views) view.cross?.remove();
}
function zoomTo(ends) {
  range = ends;
  byId("reset").disabled = !ends;
  drawAll();
}
function drag(view, event) {
  if (!view.scale || event.button !== 0) return;
  const left = view.svg.getBoundingClientRect().left, from = event.clientX - left;
  view.svg.setPointerCapture(event.pointerId);
  let zoom;
  const move = e => {
    const to = e.clientX - left;
    zoom?.remove();
    zoom = svgNode("rect", {class: "zoom", x: Math.min(from, to), width: Math.abs(to - from),
      y: PAD.top, height: view.svg.clientHeight - PAD.top - PAD.bottom}, view.svg);
  };
  const end = e => {
    view.svg.removeEventListener("pointermove", move);
    zoom?.remove();
    if (e.type === "pointerup" && Math.abs(e.clientX - left - from) > 8)
      zoomTo([from, e.clientX - left].map(view.scale.at).sort((a, b) => a - b));
  };
  view.svg.addEventListener("pointermove", move);
  view.svg.addEventListener("pointerup", end, {once: true});
  view.svg.addEventListener("pointercancel", end, {once: true});
}
function step(view, event) {
  if (event.key === "Escape") { leave(); if (range) zoomTo(null); return; }
  const by = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9}[event.key];
  if (!by || !view.scale) return;
  event.preventDefault();
  const {x} = view.shown.reduce((a, b) => b.x.length > a.x.length ? b : a);
  const now = view.at === undefined ? 0 : nearest(x, view.at) + by;
  const at = x[Math.max(0, Math.min(x.length - 1, now))], box = view.svg.getBoundingClientRect();
  showAt(view, at, {x: box.left + view.scale.x(at), y: box.top + 20});
  byId("told").textContent = byId("tip").textContent;
}
const views = panels.map((panel, index) => {
  const box = panel.more ? byId("others") : byId("charts"), section = document.createElement("section");
  section.className = "panel";
  if (panel.more) box.hidden = false;
  const title = html("h3", section, panel.title), svg = svgNode("svg", {tabindex: 0, role: "img"});
  const view = {index, panel, svg, lines: [], shown: [], keys: html("div", section)};
  view.keys.className = "keys";
  section.append(svg);
  view.note = html("small", section);
  title.id = `chart${index}`;
  svg.setAttribute("aria-label", panel.title);
  svg.addEventListener("pointermove", e => view.scale && showAt(view,
    view.scale.at(e.clientX - svg.getBoundingClientRect().left), {x: e.clientX, y: e.clientY}));
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("pointerdown", e => drag(view, e));
  svg.addEventListener("keydown", e => step(view, e));
  (panel.more ? box.querySelector(".grid") : box).append(section);
  return view;
});
function drawAll() { leave(); views.forEach(draw); }
if (runs.length > 1) runs.forEach((run, r) => {
  const button = html("button", byId("runs"));
  button.type = "button";
  html("span", button).className = `swatch c${r % COLORS}`;
  button.append(run.name);
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    flip(r);
    button.setAttribute("aria-pressed", String(!hidden.has(r)));
    drawAll();
  };
});
byId("smooth").onchange = byId("log").onchange = drawAll;
for (const radio of document.querySelectorAll("input[name=axis]"))
  radio.onchange = () => { for (const view of views) view.at = undefined; zoomTo(null); };
byId("reset").onclick = () => zoomTo(null);
byId("others").ontoggle = drawAll;
addEventListener("resize", drawAll);
addEventListener("beforeprint", drawAll);
drawAll();
