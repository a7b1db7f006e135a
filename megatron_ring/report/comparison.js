// Draws the charts of a comparison of checkpoints. Each is drawn when it comes near the window.
"use strict";

const COLOURS = ["#8a93a3", "#3f78d8", "#e0712f", "#1f9d77", "#b659b8", "#c59a00", "#149bb0", "#e2527e", "#7c8b3a", "#93704f"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "cross"];
const WON = "#1f9d77", LOST = "#d0563f";
const CONFIG = { displayModeBar: false, responsive: true };

const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const plots = [...document.querySelectorAll(".plot")];

// Plotly reads a little HTML in names; a name is to be seen as it is.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 34) => plain(text.length > most ? `${text.slice(0, most - 1)}…` : text);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (index) => COLOURS[index % COLOURS.length];
const shown = () => data.columns.map((name, index) => index).filter((index) => !hidden.has(index));

function layout(more = {}) {
  const line = { gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--soft"), zerolinewidth: 1, color: css("--soft"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    margin: { l: 40, r: 16, t: 8, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
    showlegend: false, hovermode: "closest", xaxis: { ...line, ...xaxis }, yaxis: { ...line, ...yaxis }, ...rest,
  };
}

// Where column `index` of those shown stands around the middle of its row.
const offset = (place, count, width) => count < 2 ? 0 : (place / (count - 1) - 0.5) * width;

const error = (cells) => ({
  type: "data", symmetric: false, thickness: 1.6, width: 0,
  array: cells.map((cell) => 100 * (cell.high - cell.value)), arrayminus: cells.map((cell) => 100 * (cell.value - cell.low)),
});

// Points with their intervals: a row of `rows` each, upright where they are few, else lying.
function dots(rows, lying, of = (cell) => cell) {
  const columns = shown();
  const traces = columns.map((index, place) => {
    const found = rows.map((row, at) => [row.cells[index] && of(row.cells[index]), at, row.title]).filter(([cell]) => cell);
    const cells = found.map(([cell]) => cell);
    const values = cells.map((cell) => 100 * cell.value);
    const places = found.map(([, at]) => at + offset(place, columns.length, Math.min(0.6, 0.16 * columns.length)));
    const fill = cells.map((cell) => (cell.sure === false ? css("--card") : colour(index)));
    return {
      type: "scatter", mode: "markers", name: plain(data.columns[index]),
      x: lying ? values : places, y: lying ? places : values, [lying ? "error_x" : "error_y"]: { ...error(cells), color: colour(index) },
      marker: { size: 8, color: fill, symbol: SYMBOLS[index % SYMBOLS.length], line: { color: colour(index), width: 1.6 } },
      customdata: found.map(([cell, , title]) => [plain(title), (100 * cell.low).toFixed(1), (100 * cell.high).toFixed(1)]),
      hovertemplate: `%{customdata[0]}: %{${lying ? "x" : "y"}:.1f} (%{customdata[1]} to %{customdata[2]})`,
    };
  });
  const names = { tickvals: rows.map((_, at) => at), ticktext: rows.map((row) => short(row.title)), zeroline: false, showgrid: false };
  names.range = lying ? [rows.length - 0.5, -0.5] : [-0.5, rows.length - 0.5];
  const lines = rows.slice(1).map((_, at) => ({ type: "line", line: { color: css("--grid"), width: 1 }, layer: "below", ...(lying ? { xref: "paper", x0: 0, x1: 1, y0: at + 0.5, y1: at + 0.5 } : { yref: "paper", y0: 0, y1: 1, x0: at + 0.5, x1: at + 0.5 }) }));
  const amounts = { ticksuffix: lying ? "" : " ", rangemode: "tozero" };
  return [traces, layout({ xaxis: lying ? amounts : names, yaxis: lying ? names : amounts, shapes: lines })];
}

function bars(rows, of) {
  const traces = shown().map((index) => {
    const found = rows.map((row) => [row.cells[index], row.title]).filter(([cell]) => cell && of(cell) !== null);
    const cells = found.map(([cell]) => cell);
    return { type: "bar", name: plain(data.columns[index]), x: found.map(([, title]) => short(title, 22)), y: cells.map(of), marker: { color: colour(index) }, cells };
  });
  return [traces, layout({ barmode: "group", bargap: 0.28, bargroupgap: 0.06, yaxis: { rangemode: "tozero" } })];
}

function rates(rows) {
  const [traces, made] = bars(rows, (cell) => 100 * cell.value);
  for (const trace of traces) {
    trace.error_y = { ...error(trace.cells), color: css("--soft"), thickness: 1.3, width: 3 };
    trace.customdata = trace.cells.map((cell) => [cell.part, cell.whole]);
    trace.hovertemplate = "%{x}: %{y:.1f} (%{customdata[0]:,} of %{customdata[1]:,})";
  }
  return [traces, made];
}

function lengths(rows) {
  const [traces, made] = bars(rows, (cell) => cell.tokens);
  for (const trace of traces) trace.hovertemplate = "%{x}: %{y:,.0f} tokens";
  return [traces, made];
}

function won(pair) {
  const names = pair.tasks.map((one) => short(one.title));
  const one = (name, values, ink, sign) => ({
    type: "bar", orientation: "h", name, y: names, x: values.map((value) => sign * value), marker: { color: ink },
    text: values.map((value) => value.toLocaleString("en")), textposition: "outside", cliponaxis: false,
    customdata: pair.tasks.map((task, at) => [values[at], task.p < 0.0001 ? "< 0.0001" : task.p.toFixed(4)]), hovertemplate: "%{y}: %{customdata[0]:,}, p %{customdata[1]}",
  });
  const most = Math.max(1, ...pair.tasks.flatMap((task) => [task.won, task.lost])) * 1.15;
  const traces = [one("lost", pair.tasks.map((task) => task.lost), LOST, -1), one("won", pair.tasks.map((task) => task.won), WON, 1)];
  const x = { range: [-most, most], showticklabels: false, showgrid: false };
  return [traces, layout({ barmode: "relative", bargap: 0.35, xaxis: x, yaxis: { autorange: "reversed" }, showlegend: true, legend: { orientation: "h", x: 0.5, xanchor: "center", y: 1.02, yanchor: "bottom", traceorder: "normal" }, margin: { l: 40, r: 16, t: 26, b: 8 } })];
}

const tall = (count) => 60 + count * Math.max(24, 11 * shown().length + 8);

function drawn(name) {
  const [kind, number] = name.split(/-(?=\d+$)/);
  const scores = data.table2.rows;
  if (kind === "scores") return [...dots(scores, false), 360];
  if (kind === "deltas") {
    const height = tall(scores.length);
    return [...dots(scores, true, (cell) => cell.delta), Math.max(height, 260)];
  }
  if (kind === "tokens") return [...lengths(scores.filter((row) => row.kind !== "mean")), Math.max(tall(scores.length), 260)];
  // How many cut answers were cut in their thought is a rate of few answers, and often all of them.
  if (kind === "errors") return [...rates(data.table3.rows.slice(0, -1)), 320];
  if (kind === "errors-by-task") return [...rates(data.table3.by_task.map((one) => ({ ...one.rows[0], title: one.title }))), 320];
  if (kind === "won") return [...won(data.pairs[number]), 60 + 34 * data.pairs[number].tasks.length];
  const rows = data.topics.tables[number].scores;
  const [traces, made] = dots(rows, true);
  made.xaxis.range = [-1, 101];
  return [traces, made, tall(rows.length)];
}

function draw(element) {
  const [traces, made, height] = drawn(element.dataset.chart);
  element.style.height = `${height}px`;
  Plotly.react(element, traces.map(({ cells, ...trace }) => trace), { ...made, height }, CONFIG);
  element.stale = false;
}

function redraw() {
  for (const element of plots) {
    element.stale = true;
    if (element.near) draw(element);
  }
}

function start() {
  const group = document.getElementById("runs");
  data.columns.forEach((name, index) => {
    const button = document.createElement("button");
    const swatch = document.createElement("span"), label = document.createElement("span");
    swatch.style.cssText = `width: 11px; height: 11px; border-radius: 50%; background: ${colour(index)}`;
    label.className = "name";
    label.textContent = name;
    button.type = "button";
    button.setAttribute("aria-pressed", true);
    button.append(swatch, label);
    button.onclick = () => {
      if (!hidden.delete(index)) hidden.add(index);
      button.setAttribute("aria-pressed", !hidden.has(index));
      redraw();
    };
    group.append(button);
  });
  const watch = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      entry.target.near = entry.isIntersecting;
      if (entry.isIntersecting && entry.target.stale !== false) draw(entry.target);
    }
  }, { rootMargin: "400px" });
  plots.forEach((element) => watch.observe(element));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => plots.forEach(draw));
}

start();
