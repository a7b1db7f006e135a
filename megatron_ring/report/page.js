// Draws the page's data: a card a chart, drawn when it comes near the window, so that a page of
// sixty charts opens as fast as one of six.
"use strict";

const COLOURS = ["#3f78d8", "#e0712f", "#1f9d77", "#b659b8", "#c59a00", "#149bb0", "#e2527e", "#7c8b3a", "#8a6fdb", "#93704f"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star"];
const AXES = {
  step: { title: "step", hover: "step %{x:,.0f}" },
  tokens: { title: "tokens seen", hover: "%{x:.4s} tokens" },
  hours: { title: "hours since the first start", hover: "%{x:.3f} h" },
};
const EVENT_COLOURS = { start: "#1f9d77", resume: "#3f78d8", saved: "#8a93a3", warning: "#c59a00", spike: "#e0712f", failed: "#d03b3b", stopped: "#b659b8", finished: "#1f9d77" };
const VERDICTS = { kept: "skipped, comes again", dropped: "dropped", trained: "came again and went well", spike: "spike" };

const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "step", smooth: true, hidden: new Set(), range: null };
const cards = [];

// Plotly reads a little HTML in names; a name is to be seen as it is.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (index) => COLOURS[index % COLOURS.length];
const dash = (run) => DASHES[run % DASHES.length];

function make(tag, parent, properties = {}, text = null) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// Steps as the x axis has them: themselves, or tokens or hours between the nearest known ones.
function along(run, steps) {
  if (state.axis === "step") return steps;
  const [at, value] = data.runs[run].axes[state.axis];
  let i = 0;
  return steps.map((step) => {
    if (!at.length || step < at[0]) return at.length && at[0] ? value[0] * (step / at[0]) : null;
    if (i && at[i] > step) i = 0;
    while (i < at.length - 1 && at[i + 1] <= step) i++;
    if (i === at.length - 1) return value[i];
    return value[i] + ((value[i + 1] - value[i]) * (step - at[i])) / (at[i + 1] - at[i]);
  });
}

// The end of the x axis: that of the longest run shown.
function furthest() {
  const ends = data.runs.map((run, index) => {
    const last = Math.max(0, ...Object.values(run.curves).map((curve) => curve.steps.at(-1)));
    return state.hidden.has(index) ? 0 : along(index, [last])[0] || 0;
  });
  return Math.max(...ends) * 1.01 || 1;
}

function layout(card, more = {}) {
  const line = { gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--line"), color: css("--soft") };
  const x = { ...line, title: { text: AXES[state.axis].title, standoff: 6 }, automargin: true, spikecolor: css("--soft"), spikethickness: -1, spikedash: "dot", unifiedhovertitle: { text: AXES[state.axis].hover } };
  x.range = state.range || [0, furthest()];
  const y = { ...line, title: { text: plain(card.unit), standoff: 8 }, automargin: true };
  y.exponentformat = card.least < 1e-3 ? "power" : "none";
  if (card.least >= 0) y.rangemode = "nonnegative";
  if (card.percent) y.tickformat = ".3~%";
  else if (card.most >= 1e4) y.tickformat = "~s";
  if (card.log) Object.assign(y, { type: "log", dtick: card.most / card.least > 100 ? 1 : "D2" });
  return {
    margin: { l: 56, r: 14, t: 12, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
    hovermode: "x unified", hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
    xaxis: x, yaxis: y, showlegend: false, uirevision: "stays",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } }, ...more,
  };
}

const CONFIG = { displayModeBar: false, responsive: true };

// The traces of one curve: its values faint, its mean over neighbours on top.
function traces(card, run, one, byRun) {
  const curve = data.runs[run].curves[one.key];
  if (!curve) return [];
  const several = card.runs.length > 1;
  const name = plain(several ? (card.series.length > 1 ? `${data.runs[run].name} · ${one.label}` : data.runs[run].name) : one.label);
  const ink = colour(byRun ? run : one.colour);
  const thick = state.smooth && curve.smooth_steps.length > 0;
  const mixed = card.series.some((other) => !other.held_out);
  const line = { color: ink, width: thick ? 1 : 1.6, dash: mixed && one.held_out ? "dot" : byRun ? "solid" : dash(run) };
  const shown = card.percent ? "%{y:.2%}" : "%{y:.5~g}";
  const few = one.held_out || curve.count < 30;
  const raw = {
    type: "scatter", x: along(run, curve.steps), y: curve.values, mode: few ? "lines+markers" : "lines",
    name, line, marker: { size: 5, color: ink, symbol: SYMBOLS[run % SYMBOLS.length] }, opacity: thick ? 0.28 : 1, hovertemplate: shown, legendgroup: one.key,
    showlegend: !thick, connectgaps: false,
  };
  if (!thick) return [raw];
  Object.assign(raw, { hoverinfo: "skip", hovertemplate: null });
  return [raw, {
    type: "scatter", mode: "lines", x: along(run, curve.smooth_steps), y: curve.smooth_values, name,
    line: { ...line, width: 2 }, customdata: curve.smooth_raw, legendgroup: one.key,
    hovertemplate: `${shown} <span style='opacity:.7'>(there ${shown.replace("y:", "customdata:")})</span>`,
  }];
}

function lines(card) {
  const shown = card.runs.filter((run) => !state.hidden.has(run));
  const byRun = new Set(card.series.map((one) => one.colour)).size < 2;
  const found = shown.flatMap((run) => card.series.flatMap((one) => traces(card, run, one, byRun)));
  // With several runs the header tells them apart: the legend then names each curve once.
  const seen = new Set();
  const multiple = card.series.length > 1;
  for (const trace of found) {
    if (trace.showlegend === false) continue;
    trace.showlegend = multiple && !seen.has(trace.legendgroup);
    seen.add(trace.legendgroup);
  }
  if (card.runs.length > 1) {
    // Of the first curve of each name the legend says only the name.
    for (const trace of found.filter((t) => t.showlegend)) {
      const own = card.series.find((one) => one.key === trace.legendgroup);
      trace.name = plain(own.label);
      trace.hovertemplate += `<extra>${plain(data.runs[shown[0]].name).replace(/%/g, "&#37;")} · ${plain(own.label).replace(/%/g, "&#37;")}</extra>`;
    }
  }
  return [found, layout(card, { showlegend: multiple })];
}

function stacked(card) {
  const run = card.runs[0];
  const shares = card.kind === "shares";
  const found = card.series.map((one, index) => ({
    type: "scatter", mode: "lines", x: along(run, card.steps), y: card.values[index], name: plain(one.label),
    line: { width: 0.5, color: colour(one.colour) }, stackgroup: "all", groupnorm: shares ? "percent" : "",
    hovertemplate: shares ? "%{y:.1f} %" : "%{y:.4~g} s",
  }));
  const drawn = layout(card, { showlegend: true });
  drawn.legend.traceorder = "normal";
  if (shares) Object.assign(drawn.yaxis, { range: [0, 100], ticksuffix: " %", title: { text: card.unit, standoff: 8 } });
  return [found, drawn];
}

function heat(card) {
  const maps = data.runs[card.runs[0]].maps;
  const z = maps.load[card.frame];
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const middle = dark ? "#2b313d" : "#f3f4f6";
  // 1 in the middle: blue is too little, orange too much; beyond thrice the share all is alike.
  const scale = [[0, "#2f5fd0"], [1 / 3, middle], [1, "#e0712f"]];
  const trace = {
    type: "heatmap", z, x: z[0].map((_, i) => i), y: z.map((_, i) => maps.first_layer + i), zmin: 0, zmax: 3, colorscale: scale,
    colorbar: { title: { text: "× fair share", side: "right" }, thickness: 12, outlinewidth: 0, tickvals: [0, 1, 2, 3], ticktext: ["0", "1", "2", "≥ 3"] },
    hovertemplate: "layer %{y}, expert %{x}<br>%{z:.2f} × its fair share<extra></extra>", xgap: 1, ygap: 1,
  };
  const drawn = layout(card, { hovermode: "closest" });
  Object.assign(drawn.xaxis, { title: { text: "expert", standoff: 6 }, showgrid: false, constrain: "domain" });
  delete drawn.xaxis.range; // that of steps
  Object.assign(drawn.yaxis, { title: { text: "layer", standoff: 8 }, autorange: "reversed", showgrid: false, type: "linear" });
  for (const axis of [drawn.xaxis, drawn.yaxis]) axis.tickformat = "d";
  if (z.length < 12) drawn.yaxis.dtick = 1;
  return [[trace], drawn];
}

// The loss, with marks where a batch spiked and, at the bottom, what the diary tells.
function spikes(card) {
  const [found, drawn] = lines(card);
  const shown = card.runs.filter((run) => !state.hidden.has(run));
  for (const trace of found) trace.hoverinfo = "skip", trace.hovertemplate = null;
  for (const run of shown) {
    const own = data.runs[run];
    const name = card.runs.length > 1 ? `<b>${plain(own.name)}</b><br>` : "";
    const curve = own.curves.loss;
    const highest = curve ? Math.max(...curve.values.filter((v) => v !== null)) : 1;
    const far = (spike) => spike.loss === null || spike.loss > highest;
    if (own.spikes.length) found.push({
      type: "scatter", mode: "markers", name: "spikes", x: along(run, own.spikes.map((s) => s.step)),
      y: own.spikes.map((s) => (far(s) ? highest : s.loss)),
      marker: { size: 10, color: own.spikes.map((s) => (s.kind === "trained" ? "#1f9d77" : s.kind === "dropped" ? "#d03b3b" : "#e0712f")),
        symbol: own.spikes.map((s) => (far(s) ? "triangle-up" : s.kind === "trained" ? "circle" : "x")), line: { width: 1.5, color: card.runs.length > 1 ? colour(run) : css("--card") } },
      text: own.spikes.map((s) => name + `${VERDICTS[s.kind] || plain(s.kind)}<br>` + wrap(plain(s.text))), hovertemplate: "%{text}<extra></extra>",
    });
    const told = own.events.filter((e) => e.kind !== "spike" && e.kind !== "report");
    if (told.length) found.push({
      type: "scatter", mode: "markers", name: "events", yaxis: "y2", x: along(run, told.map((e) => e.step)), y: told.map(() => 0.03),
      marker: { size: 9, symbol: "line-ns", line: { width: 2, color: told.map((e) => EVENT_COLOURS[e.kind] || "#8a93a3") } },
      text: told.map((e) => name + `step ${e.step.toLocaleString("en")}: ${plain(e.kind)}<br>` + wrap(plain(e.text))), hovertemplate: "%{text}<extra></extra>",
    });
  }
  for (const trace of found) trace.showlegend = false;
  const starts = shown.flatMap((run) => along(run, data.runs[run].events.filter((e) => e.kind === "resume").map((e) => e.step)));
  return [found, {
    ...drawn, hovermode: "closest", hoverdistance: 12, showlegend: false,
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    shapes: starts.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: EVENT_COLOURS.resume, width: 1, dash: "dot" } })),
  }];
}

// Hover boxes do not break lines by themselves.
function wrap(text) {
  let width = 0;
  return text.split(" ").map((word) => {
    width = width + word.length > 70 ? word.length : width + word.length + 1;
    return width === word.length ? "<br>" + word : word;
  }).join(" ");
}

const KINDS = { lines, stacked, shares: stacked, "heat map": heat, spikes };

function draw(card) {
  if (!card.near) { card.stale = true; return; }
  card.stale = false;
  const [found, drawn] = KINDS[card.kind](card);
  const first = !card.plot.classList.contains("js-plotly-plot");
  Plotly.react(card.plot, found, drawn, CONFIG);
  if (first && card.kind !== "heat map") card.plot.on("plotly_relayout", (change) => zoom(card, change));
}

// A stretch chosen in one chart is chosen in all.
function zoom(from, change) {
  if (change["xaxis.range[0]"] !== undefined) state.range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  else if (change["xaxis.autorange"]) state.range = null;
  else return;
  for (const card of cards) if (card !== from && card.kind !== "heat map") draw(card);
}

const redraw = () => cards.forEach(draw);

// The footnote of a card: what the table says of the chart, and what is not to be seen in it.
function remarks(card, parent) {
  const about = make("p", parent, {}, card.about);
  for (const run of card.runs) for (const one of card.series) {
    const curve = data.runs[run].curves[one.key];
    if (!curve || !curve.num_not_finite) continue;
    const more = curve.num_not_finite > curve.not_finite.length ? ", …" : "";
    const steps = curve.not_finite.map((s) => s.toLocaleString("en")).join(", ");
    const what = [card.runs.length > 1 ? data.runs[run].name : "", card.series.length > 1 ? one.label : ""].filter(Boolean).join(", ");
    make("span", about, { class: "warn" }, ` ${what ? what + ": " : ""}${curve.num_not_finite} not finite (step ${steps}${more}).`);
  }
}

function addCard(card, grid) {
  const wide = card.kind === "spikes" ? " wide" : "";
  card.element = make("div", grid, { class: `card${wide}${card.kind === "heat map" ? " map" : ""}`, "data-title": card.title });
  const top = make("div", card.element, { class: "top" });
  const heading = make("h3", top, {}, card.title + " ");
  const alone = card.kind === "lines" || card.kind === "spikes" ? "" : data.runs.length > 1 ? data.runs[card.runs[0]].name : "";
  if (alone) make("small", heading, {}, alone);
  const all = card.runs.flatMap((run) => card.series.flatMap((one) => (data.runs[run].curves[one.key] || { values: [] }).values)).filter((v) => v !== null);
  const least = all.reduce((a, b) => Math.min(a, b), Infinity), most = all.reduce((a, b) => Math.max(a, b), -Infinity);
  Object.assign(card, { least, most });
  card.log = card.log && least > 0;
  if ((card.kind === "lines" || card.kind === "spikes") && least > 0) {
    const button = make("button", top, { type: "button", "aria-pressed": card.log, title: "logarithmic axis" }, "log");
    button.onclick = () => { card.log = !card.log; button.setAttribute("aria-pressed", card.log); draw(card); };
  }
  remarks(card, card.element);
  card.plot = make("div", card.element, { class: "plot" });
  if (card.kind === "heat map") addSlider(card);
  card.near = false;
  card.stale = true;
  cards.push(card);
}

function addSlider(card) {
  const steps = data.runs[card.runs[0]].maps.steps;
  card.frame = steps.length - 1;
  const row = make("label", card.element, { class: "slider" }, "step");
  const slider = make("input", row, { type: "range", min: 0, max: steps.length - 1, value: card.frame, step: 1, "aria-label": "step of the heat map" });
  const said = make("output", row, {}, steps[card.frame].toLocaleString("en"));
  slider.oninput = () => { card.frame = Number(slider.value); said.textContent = steps[card.frame].toLocaleString("en"); draw(card); };
}

function choice(parent, title, options, chosen, pick) {
  const group = make("div", parent, { class: "choice", role: "group", "aria-label": title });
  make("span", group, {}, title);
  for (const [value, text] of options) {
    const button = make("button", group, { type: "button", "data-value": value, "aria-pressed": value === chosen }, text);
    button.onclick = () => {
      for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
      pick(value);
    };
  }
}

function addControls() {
  const controls = document.getElementById("controls");
  const known = [["step", "step"], ["tokens", "tokens"], ["hours", "wall time"]].filter(([axis]) => axis === "step" || data.runs.every((run) => run.axes[axis][0].length));
  choice(controls, "x axis", known, "step", (axis) => { state.axis = axis; state.range = null; redraw(); });
  choice(controls, "curves", [["mean", "mean"], ["values", "values"]], "mean", (value) => { state.smooth = value === "mean"; redraw(); });
  const back = make("button", controls, { type: "button", id: "unzoom" }, "whole run");
  back.onclick = () => { state.range = null; redraw(); };
  const runs = document.getElementById("runs");
  data.runs.forEach((run, index) => {
    const button = make("button", runs, { type: "button", "aria-pressed": true, title: `show or hide ${run.name}` });
    const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [key, value] of [["width", 26], ["height", 8]]) sample.setAttribute(key, value);
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const pattern = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" }[dash(index)];
    for (const [key, value] of [["x1", 0], ["x2", 26], ["y1", 4], ["y2", 4], ["stroke", colour(index)], ["stroke-width", 3], ["stroke-dasharray", pattern]]) stroke.setAttribute(key, value);
    sample.append(stroke);
    button.append(sample);
    make("span", button, { class: "name" }, run.name);
    button.onclick = () => {
      if (!state.hidden.delete(index)) state.hidden.add(index);
      button.setAttribute("aria-pressed", !state.hidden.has(index));
      for (const card of cards) card.element.hidden = card.runs.every((one) => state.hidden.has(one));
      redraw();
    };
  });
}

function addKinds() {
  const table = document.getElementById("events-table");
  if (!table) return;
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "kind");
  const rows = [...table.tBodies[0].rows];
  const off = new Set();
  for (const kind of new Set(rows.map((row) => row.cells[column].textContent))) {
    const count = rows.filter((row) => row.cells[column].textContent === kind).length;
    const button = make("button", document.getElementById("kinds"), { type: "button", "aria-pressed": true }, `${kind} ${count}`);
    button.onclick = () => {
      if (!off.delete(kind)) off.add(kind);
      button.setAttribute("aria-pressed", !off.has(kind));
      for (const row of rows) row.hidden = off.has(row.cells[column].textContent);
    };
  }
}

function start() {
  const nav = document.getElementById("sections");
  make("a", nav, { href: "#overview" }, "Overview");
  data.sections.forEach((section, index) => {
    const part = make("section", document.getElementById("charts"), { id: `section-${index}` });
    make("h2", part, {}, section.title);
    make("a", nav, { href: `#section-${index}` }, section.title);
    const grid = make("div", part, { class: "grid" });
    section.cards.forEach((card) => addCard(card, grid));
  });
  if (document.getElementById("events")) make("a", nav, { href: "#events" }, "Events");
  addControls();
  addKinds();
  const byElement = new Map(cards.map((card) => [card.element, card]));
  const watch = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      const card = byElement.get(entry.target);
      card.near = entry.isIntersecting;
      if (card.near && card.stale) draw(card);
    }
  }, { rootMargin: "400px" });
  cards.forEach((card) => watch.observe(card.element));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => cards.forEach((card) => { card.near = true; if (card.stale) draw(card); }));
}

start();
