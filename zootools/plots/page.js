"use strict";
// The page of one zoo. Texts of the zoo reach the document as text nodes only, and plotly gets nothing but numbers
// and escaped titles: a zoo may come from a stranger.

const zoo = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const PALETTE = zoo.palette, SYMBOLS = ["circle", "triangle-up", "square"], KINDS = PALETTE.length * SYMBOLS.length - 1;
const CURVES = ["#0072B2", "#E69F00", "#009E73"];

function unpack({ type, data }) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new { f4: Float32Array, f8: Float64Array, u2: Uint16Array, u4: Uint32Array }[type](bytes.buffer);
}

const model = unpack(zoo.model), ROWS = model.length; // the model of every checkpoint; rows of a model follow each other
const columns = zoo.columns.map((column) => ({ ...column, values: unpack(column.values), codes: column.codes && unpack(column.codes) }));
const planes = zoo.planes.map((plane) => ({ ...plane, x: unpack(plane.x), y: unpack(plane.y) }));
const epochs = columns.find((column) => column.name === "epoch").values;
const start = [];
for (let row = 0; row < ROWS; row++) if (row === 0 || model[row] !== model[row - 1]) start[model[row]] = row;

for (const column of columns) {
  if (column.digits) continue; // of whole numbers that are rounded here the page brings texts, and their codes
  if (column.choices && !column.labels) {
    // Numbers with few different values are filtered one by one.
    const code = new Map(column.choices.map((value, index) => [value, index]));
    column.codes = Uint16Array.from(column.values, (value) => code.get(value) ?? column.choices.length);
  } else column.codes = column.values;
}
const filters = columns.filter((column) => column.filter);
const hidden = new Map(filters.map((column) => [column, new Set()]));
const ranges = new Map();
const state = { plane: planes.find((plane) => plane.label === "z") ?? planes[0], colour: columns.find((c) => c.name === zoo.colour) ?? null, row: null };

function node(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const grouped = (count) => count.toLocaleString("en");
const rounded = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(5))) : "unknown");
const brief = (value) => String(Number(value.toPrecision(3)));
const number = (column, value) => (column.whole && Number.isFinite(value) ? String(value) : rounded(value));
const shown = (column, row) =>
  column.labels ? column.labels[column.values[row]] : column.digits ? column.digits[column.codes[row]] ?? "unknown" : number(column, column.values[row]);
const style = (code) =>
  code < KINDS
    ? { color: PALETTE[code % PALETTE.length], symbol: SYMBOLS[Math.floor(code / PALETTE.length)] }
    : { color: "#999999", symbol: "x" };

// --- filters and counts ------------------------------------------------------------------------------------------

function visibleRows() {
  const kept = new Uint8Array(ROWS).fill(1);
  for (const [column, codes] of hidden)
    if (codes.size) for (let row = 0; row < ROWS; row++) if (codes.has(column.codes[row])) kept[row] = 0;
  for (const [column, [low, high]] of ranges)
    for (let row = 0; row < ROWS; row++) if (!(column.values[row] >= low && column.values[row] <= high)) kept[row] = 0;
  const rows = [];
  for (let row = 0; row < ROWS; row++) if (kept[row]) rows.push(row);
  return rows;
}

function countModels(rows) {
  let count = 0;
  for (let i = 0; i < rows.length; i++) if (i === 0 || model[rows[i]] !== model[rows[i - 1]]) count++;
  return count;
}

function choiceFilter(column) {
  const table = document.createElement("table"), head = table.insertRow();
  for (const [title, kind] of [["", ""], ["models", "number"], ["checkpoints", "number"]]) head.append(node("th", title, kind));
  column.cells = (column.labels ?? column.choices).map((choice, code) => {
    const row = table.insertRow(), label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.onchange = () => {
      if (box.checked) hidden.get(column).delete(code);
      else hidden.get(column).add(code);
      draw();
    };
    label.append(box, ` ${column.labels || column.digits ? choice : number(column, choice)}`);
    label.title = label.textContent;
    row.insertCell().append(label);
    return [0, 1].map(() => row.appendChild(node("td", "", "number")));
  });
  return table;
}

function rangeFilter(column) {
  const line = node("div", "", "range"), [low, high] = column.range;
  const inputs = [low, high].map((value, end) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "number", step: "any", placeholder: rounded(value), value: "" });
    input.setAttribute("aria-label", `${column.title}, ${end ? "at most" : "at least"}`);
    input.onchange = () => {
      const [least, most] = inputs.map((field) => (field.value === "" ? null : Number(field.value)));
      if (least === null && most === null) ranges.delete(column);
      else ranges.set(column, [least ?? -Infinity, most ?? Infinity]);
      draw();
    };
    return input;
  });
  line.append(inputs[0], "to", inputs[1]);
  return line;
}

function updateCounts(rows) {
  element("count").textContent =
    `${grouped(rows.length)} of ${grouped(ROWS)} checkpoints, ` +
    `${grouped(countModels(rows))} of ${grouped(zoo.models.length)} models`;
  for (const column of filters) {
    if (!column.cells) continue;
    const size = column.cells.length + 1, checkpoints = new Uint32Array(size), models = new Uint32Array(size);
    const last = new Int32Array(size).fill(-1);
    for (const row of rows) {
      const code = column.codes[row];
      checkpoints[code]++;
      if (last[code] !== model[row]) models[code]++;
      last[code] = model[row];
    }
    column.cells.forEach(([first, second], code) => {
      first.textContent = grouped(models[code]);
      second.textContent = grouped(checkpoints[code]);
    });
  }
}

// --- ticks -------------------------------------------------------------------------------------------------------

/** Plain numbers at 1, 2, 5, 10, ... of a logarithmic axis; at powers of ten alone where it spans more than three. */
function logTicks(low, high) {
  const tickvals = [], steps = high > 1000 * low ? [1] : [1, 2, 5], every = Math.ceil(Math.log10(high / low) / 8);
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    if (power % every === 0) tickvals.push(...steps.map((step) => step * 10 ** power).filter((v) => v >= low && v <= high));
  if (tickvals.length < 2) tickvals.splice(0, 1, low, high);
  return { tickvals, ticktext: tickvals.map(brief) };
}

/** Whole numbers alone for epochs and the like, of which plotly would draw halves; nothing where it need not be told. */
function wholeTicks(low, high, values) {
  if (high - low > 8 || !values.every((value) => Number.isInteger(value) || Number.isNaN(value))) return {};
  return { tickvals: Array.from({ length: high - low + 1 }, (_, step) => low + step) };
}

// --- the map -----------------------------------------------------------------------------------------------------

let drawn = []; // the rows of every trace

function pointTraces(rows) {
  const column = state.colour;
  if (!column) return [[rows, { color: PALETTE[0] }]];
  if (column.labels) {
    const parts = new Map();
    for (const row of rows) {
      const kind = Math.min(column.values[row], KINDS);
      if (!parts.has(kind)) parts.set(kind, []);
      parts.get(kind).push(row);
    }
    return [...parts.keys()].sort((a, b) => b - a).map((kind) => [parts.get(kind), style(kind)]);
  }
  // The scale stays what it is while filters change. Learning rates and the like are logarithmic.
  const [low, high] = column.scale, log = column.log, scale = (v) => (log ? Math.log10(v) : v);
  const ends = [];
  if (low > column.range[0]) ends.push(`${brief(low)} and less`);
  if (high < column.range[1]) ends.push(`${brief(high)} and more`);
  const held = ends.length ? ` (at the end${ends[1] ? "s" : ""}: ${ends.join(", ")})` : "";
  const bar = {
    title: { text: escaped(column.title + held), side: "top" }, orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0,
    yanchor: "bottom", thickness: 10, outlinewidth: 0,
  };
  const { tickvals, ticktext } = log ? logTicks(low, high) : wholeTicks(low, high, column.values);
  Object.assign(bar, { tickvals: tickvals?.map(scale), ticktext });
  const color = rows.map((row) => scale(column.values[row]));
  const marker = { color, colorscale: "Viridis", cmin: scale(low), cmax: scale(high), showscale: true, colorbar: bar };
  return [[rows, marker]];
}

function draw() {
  const begun = performance.now(), { plane } = state, rows = visibleRows();
  const parts = pointTraces(rows), opacity = state.row === null ? 0.75 : 0.2; // a chosen model stands out
  const traces = parts.map(([part, marker]) => trace(part, { mode: "markers" }, { size: 5, opacity, ...marker }));
  drawn = parts.map(([part]) => part);
  if (state.row !== null) {
    const way = rowsOf(model[state.row]), size = way.map((row) => (row === state.row ? 13 : 6));
    const line = { color: "#000", width: 2 }, marker = { size, color: "#fff", line: { color: "#000", width: 1.5 } };
    traces.push(trace(way, { mode: "lines+markers", line }, marker));
    drawn.push(way);
  }
  const axis = (number, range) => ({
    title: { text: `${plane.method} ${number} of ${plane.label}`, standoff: 6 }, range, showticklabels: false, zeroline: false,
    linecolor: "#999", gridcolor: "#eee",
  });
  const layout = {
    xaxis: axis(1, plane.ranges[0]), yaxis: axis(2, plane.ranges[1]), margin: { l: 30, r: 10, t: 30, b: parts.some(([, marker]) => marker.showscale) ? 86 : 30 },
    showlegend: false, hovermode: "closest", uirevision: plane.label + plane.method,
  };
  updateCounts(rows);
  updateLegend();
  updateBest(rows);
  const said = [[plane.beyond, "far beyond, drawn at the border"], [plane.missing, `not drawn: ${plane.label} is not finite`]];
  element("beyond").textContent = said.filter(([count]) => count).map(([count, what]) => `${grouped(count)} checkpoints ${what}`).join("; ");
  // Named one by one: plotly has a button that sends the picture to a server.
  const modeBarButtons = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const settings = { displaylogo: false, responsive: true, scrollZoom: true, modeBarButtons };
  return Plotly.react("map", traces, layout, settings).then(async (map) => {
    if (Math.abs(map.clientHeight - map._fullLayout.height) > 1) await Plotly.Plots.resize(map); // the legend has taken its room
    document.body.dataset.drawn = performance.now() - begun;
  });
}

function trace(rows, more, marker) {
  const { x, y } = state.plane;
  return { type: "scattergl", x: rows.map((row) => x[row]), y: rows.map((row) => y[row]), hoverinfo: "none", marker, ...more };
}

function updateLegend() {
  const column = state.colour, entries = [];
  for (const [code, label] of (column?.labels ?? []).entries()) {
    if (code > KINDS) break;
    const { color, symbol } = style(code), mark = node("span", { circle: "●", "triangle-up": "▲", square: "■", x: "✕" }[symbol]);
    mark.style.color = color;
    const entry = node("span");
    entry.append(mark, ` ${code < KINDS ? label : `${column.labels.length - KINDS} others`}`);
    entries.push(entry);
  }
  element("legend").replaceChildren(...entries);
}

// --- the best models ---------------------------------------------------------------------------------------------

const MOST = 20;
const score = ["test_accuracy", "validation_accuracy", "train_accuracy"].map((name) => columns.find((c) => c.name === name && !c.labels)).find(Boolean)
  ?? columns.find((column) => !column.labels && column.name.endsWith("accuracy"));

/** List the models whose best visible checkpoint is the best; their settings are a click away. */
function updateBest(rows) {
  if (!score) return;
  const best = new Map();
  for (const row of rows) {
    const before = best.get(model[row]);
    if (Number.isFinite(score.values[row]) && (before === undefined || score.values[row] > score.values[before])) best.set(model[row], row);
  }
  const chosen = [...best.values()].sort((a, b) => score.values[b] - score.values[a] || a - b).slice(0, MOST);
  const table = element("best-models"), head = node("tr");
  for (const [title, kind] of [["model", ""], ["epoch", "number"], [score.title, "number"]]) head.append(node("th", title, kind));
  const lines = chosen.map((row) => {
    const line = node("tr"), button = node("button", zoo.models[model[row]].slice(0, 16));
    button.onclick = () => choose(row);
    line.append(node("td"), node("td", String(epochs[row]), "number"), node("td", shown(score, row), "number"));
    line.firstChild.append(button);
    return line;
  });
  table.replaceChildren(head, ...lines);
}

// --- one model ---------------------------------------------------------------------------------------------------

function rowsOf(number) {
  const rows = [];
  for (let row = start[number]; row < ROWS && model[row] === number; row++) rows.push(row);
  return rows;
}

function choose(row) {
  state.row = row;
  const way = rowsOf(model[row]), constant = [], changing = [];
  for (const column of columns)
    (way.every((other) => shown(column, other) === shown(column, way[0])) && column.name !== "epoch" ? constant : changing).push(column);
  element("model").hidden = false;
  element("best").hidden = true;
  element("model-name").textContent = `model ${zoo.models[model[row]]}, epoch ${epochs[row]}`;
  fill(element("configuration"), "the model", constant, row);
  fill(element("checkpoint"), "this checkpoint", changing, row);
  curves("accuracy", way, row, [-0.02, 1.02]);
  curves("loss", way, row);
  return draw();
}

function fill(table, title, chosen, row) {
  table.replaceChildren(node("caption", title));
  for (const column of chosen) {
    const line = table.insertRow();
    line.append(node("td", column.title), node("td", shown(column, row), column.labels ? "" : "number"));
  }
}

function curves(kind, way, row, range) {
  const chosen = columns.filter((column) => !column.labels && column.name.endsWith(kind));
  element(kind).hidden = element(`${kind}-names`).hidden = !chosen.length;
  if (!chosen.length) return;
  // Names of curves are text above them: a legend of plotly covers the curves as soon as it needs two lines.
  element(`${kind}-names`).replaceChildren(...chosen.map((column, index) => {
    const name = node("span"), line = node("span", "━");
    line.style.color = CURVES[index % CURVES.length];
    name.append(line, ` ${column.title}`);
    return name;
  }));
  const traces = chosen.map((column, index) => ({
    x: way.map((other) => epochs[other]), y: way.map((other) => column.values[other]), name: escaped(column.title),
    mode: way.length > 1 ? "lines" : "markers", line: { color: CURVES[index % CURVES.length], width: 2 },
  }));
  const values = chosen.flatMap((column) => way.map((other) => column.values[other])).filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values), log = kind === "loss" && low > 0 && high > 10 * low;
  const unit = kind === "loss" ? "loss (cross-entropy, nats)" : "accuracy";
  const first = epochs[way[0]], last = epochs[way[way.length - 1]];
  const layout = {
    margin: { l: 50, r: 10, t: 8, b: 34 }, showlegend: false, font: { size: 11 },
    xaxis: {
      title: { text: "epoch", standoff: 6 }, zeroline: false, ticks: "outside", ...wholeTicks(first, last, epochs),
      range: first === last ? [first - 1, last + 1] : [first, last],
    },
    yaxis: {
      title: { text: unit, standoff: 6 }, zeroline: false, ticks: "outside", type: log ? "log" : "linear", range, automargin: true,
      ...(log ? logTicks(low, high) : {}),
    },
    shapes: [{ type: "line", x0: epochs[row], x1: epochs[row], yref: "paper", y0: 0, y1: 1, line: { color: "#999", dash: "dot" } }],
  };
  Plotly.react(kind, traces, layout, { displayModeBar: false, responsive: true });
}

// --- begin -------------------------------------------------------------------------------------------------------

function options(select, entries, change) {
  entries.forEach(([text], index) => select.append(new Option(text, index)));
  select.onchange = () => { change(entries[select.value][1]); draw(); };
}

element("best").hidden = !score;
element("back").onclick = () => {
  state.row = null;
  element("model").hidden = true;
  element("best").hidden = !score;
  draw();
};
element("name").textContent = zoo.name;
element("sampling").textContent = zoo.sampling;
options(element("plane"), planes.map((plane) => [`${plane.method} of ${plane.title}`, plane]), (plane) => { state.plane = plane; });
element("plane").value = planes.indexOf(state.plane);
const colours = columns.filter((column) => column.colour).map((column) => [column.title, column]);
options(element("colour"), colours.length ? colours : [["one colour", null]], (column) => { state.colour = column; });
element("colour").value = Math.max(0, colours.findIndex(([, column]) => column === state.colour));
for (const column of filters) {
  const group = document.createElement("fieldset");
  group.append(node("legend", column.title), column.choices || column.labels ? choiceFilter(column) : rangeFilter(column));
  element("filters").append(group);
}
element("more").open = !matchMedia("(max-width: 1000px)").matches; // on a telephone the picture comes before them
draw().then(() => {
  const map = element("map"), rowOf = ({ points: [point] }) => drawn[point.curveNumber][point.pointIndex];
  map.on("plotly_click", (event) => choose(rowOf(event)));
  map.on("plotly_hover", (event) => {
    const row = rowOf(event), colour = state.colour && state.colour.name !== "epoch" ? `, ${state.colour.title} ${shown(state.colour, row)}` : "";
    element("hover").textContent = `model ${zoo.models[model[row]]}, epoch ${epochs[row]}${colour}`;
  });
  document.body.dataset.ready = performance.now();
});
