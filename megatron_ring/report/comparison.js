// Draws the charts of a comparison of checkpoints, with what dots.js has.
const WON = "#1f9d77", LOST = "#d0563f";

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

start();
