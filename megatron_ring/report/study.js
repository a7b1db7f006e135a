// Draws the charts of a study of effects, with what dots.js has.

// At first CIO's own: a method that is far off would make the others one line.
data.columns.forEach((name, index) => {
  if (!name.startsWith("CIO,")) hidden.add(index);
});

function drawn(base) {
  const rows = data.charts[base];
  return [...dots(rows, true), tall(rows.length)];
}

start();
