// What the pages of tables share: points with intervals, buttons of columns, and when a chart is drawn.
// A page's own script says in drawn(name) what a chart is: [traces, layout, height]; then it calls start().
"use strict";

const COLOURS = ["#8a93a3", "#3f78d8", "#e0712f", "#1f9d77", "#b659b8", "#c59a00", "#149bb0", "#e2527e", "#7c8b3a", "#93704f"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "cross"];
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

const tall = (count) => 60 + count * Math.max(24, 11 * shown().length + 8);

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
    button.setAttribute("aria-pressed", !hidden.has(index));
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
