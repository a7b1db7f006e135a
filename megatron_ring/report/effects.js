// Draws the charts of a report of effects, with what dots.js has.
const ARMS = ["#8a93a3", "#e0712f"], ARM_NAMES = ["without", "with it"];
const SOURCES = ["historical", "randomized", "truth"], SOURCE_SYMBOLS = ["circle-open", "diamond", "star"];

const legend = { showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 40, r: 16, t: 30, b: 36 } };

// All runs: a source has a symbol, an arm a colour.
function points(one) {
  const known = one.points.every((point) => point.tokens);
  const traces = SOURCES.flatMap((source, place) => [0, 1].map((arm) => {
    const own = one.points.map((point, at) => ({ ...point, at })).filter((point) => point.source === source && point.arm === arm);
    return {
      type: "scatter", mode: "markers", name: `${source}, ${ARM_NAMES[arm]}`,
      x: own.map((point) => (known ? point.tokens : point.at)), y: own.map((point) => 100 * point.score),
      marker: { color: ARMS[arm], symbol: SOURCE_SYMBOLS[place], size: 9, line: { width: 1.6, color: ARMS[arm] } },
      text: own.map((point) => plain(point.run)), hovertemplate: "%{text}: %{y:.1f}",
    };
  }));
  const x = known ? { type: "log", title: { text: "tokens" } } : { showticklabels: false };
  return [traces.filter((trace) => trace.x.length), layout({ ...legend, xaxis: x })];
}

function bias(one) {
  const topics = Object.keys(one.bias);
  const arms = [0, 1].filter((arm) => topics.some((topic) => String(arm) in one.bias[topic]));
  const traces = arms.map((arm) => ({
    type: "bar", name: ARM_NAMES[arm], x: topics.map((topic) => short(topic, 22)), y: topics.map((topic) => 100 * one.bias[topic][arm]),
    marker: { color: ARMS[arm] }, hovertemplate: "%{x}: %{y:.1f}",
  }));
  return [traces, layout({ ...legend, barmode: "group", bargap: 0.28, bargroupgap: 0.06 })];
}

function drawn(name) {
  const [kind, number] = name.split("-");
  const one = data.interventions[number];
  if (kind === "effects") return [...dots(one.rows, true), tall(one.rows.length)];
  return [...(kind === "bias" ? bias(one) : points(one)), 320];
}

start();
