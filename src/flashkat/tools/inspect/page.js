"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const WIDTH = 320, HEIGHT = 190, LEFT = 38, RIGHT = 8, TOP = 8, BOTTOM = 18, POINTS = 97, BARS = 40;
let step = data.now;

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function hued(made, index, count) {
  made.style.setProperty("--hue", 265 - 235 * index / Math.max(1, count - 1));
  return made;
}

function short(value) {
  if (value === null) return "not finite";
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// F(x) = (a_0 + a_1 x + ...) / (1 + |b_1| |x| + ...), NaN if a coefficient is not finite.
function evaluated([a, b], x) {
  if (a.includes(null) || b.includes(null)) return NaN;
  const top = a.reduceRight((sum, value) => sum * x + value, 0);
  return top / (1 + b.reduceRight((sum, value) => (sum + Math.abs(value)) * Math.abs(x), 0));
}

function points([low, high], count = POINTS) {
  return Array.from({length: count}, (_, index) => low + (high - low) * index / (count - 1));
}

function limits(values) {
  const finite = values.filter(Number.isFinite);
  if (!finite.length) return [0, 1];
  const low = finite.reduce((one, other) => Math.min(one, other)), high = finite.reduce((one, other) => Math.max(one, other));
  const room = (high - low || Math.abs(high) || 1) * 0.04;
  return [low - room, high + room];
}

function scale([low, high], from, to) {
  return (value) => from + (to - from) * (value - low) / (high - low || 1);
}

// A line through the points that are finite, in as many parts as there are gaps.
function path(xs, ys, across, up) {
  let text = "", pen = "M";
  xs.forEach((x, index) => {
    const y = ys[index];
    if (!Number.isFinite(y)) { pen = "M"; return; }
    text += `${pen}${across(x).toFixed(1)} ${up(y).toFixed(1)}`;
    pen = "L";
  });
  return text;
}

function axes(svg, xlimits, ylimits, across, up, bottom) {
  for (const y of ylimits) {
    const at = up(y);
    svg.append(drawn("line", {class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at}));
  }
  const room = (ylimits[1] - ylimits[0]) / 27;
  svg.append(drawn("text", {x: LEFT - 4, y: up(ylimits[1]) + 8, "text-anchor": "end"}, short(ylimits[1] - room)));
  svg.append(drawn("text", {x: LEFT - 4, y: up(ylimits[0]), "text-anchor": "end"}, short(ylimits[0] + room)));
  for (const [x, anchor] of [[xlimits[0], "start"], [xlimits[1], "end"]]) {
    svg.append(drawn("text", {x: across(x), y: bottom, "text-anchor": anchor}, short(x)));
  }
  for (const [inside, line] of [[xlimits[0] < 0 && xlimits[1] > 0, {x1: across(0), x2: across(0), y1: up(ylimits[0]), y2: up(ylimits[1])}],
    [ylimits[0] < 0 && ylimits[1] > 0, {x1: LEFT, x2: WIDTH - RIGHT, y1: up(0), y2: up(0)}]]) {
    if (inside) svg.append(drawn("line", {class: "axis", ...line}));
  }
}

function card(layer) {
  const made = element("article", {class: "card"}), count = layer.groups.length, xs = points(layer.x);
  const bars = layer.histograms ? BARS : 0, height = HEIGHT + bars;
  const start = xs.map((x) => evaluated(layer.start.rows, x));
  const at = (index) => layer.rows[index].map((rows) => xs.map((x) => evaluated(rows, x)));
  // The same axis at every step, so that a move is seen as a move.
  const ylimits = limits([start, ...layer.rows.flatMap((_, index) => at(index))].flat());
  const across = scale(layer.x, LEFT, WIDTH - RIGHT), up = scale(ylimits, HEIGHT - BOTTOM, TOP);
  const within = (y) => y >= ylimits[0] && y <= ylimits[1] ? y : NaN;
  const svg = drawn("svg", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Functions of ${layer.name}`});
  axes(svg, layer.x, ylimits, across, up, height - 5);
  const histogram = drawn("g"), lines = drawn("g"), nearest = drawn("path", {class: "nearest-line"});
  svg.append(histogram, lines, drawn("path", {class: "start-line", d: path(xs, start, across, up)}), nearest);
  const about = element("p"), chips = element("div", {class: "chips", role: "group", "aria-label": `Groups of ${layer.name}`});
  const details = element("details"), formulas = element("div");
  details.append(element("summary", {}, "Formulas"), formulas);
  let chosen = null;
  layer.groups.forEach((group, index) => {
    const chip = hued(element("button", {type: "button", "aria-pressed": "false", "aria-label": `group ${group.group}`}, group.group), index, count);
    if (group.flags.length) chip.append(element("span", {class: "flag"}, " !"));
    chip.addEventListener("click", () => { chosen = chosen === index ? null : index; show(); });
    chips.append(chip);
  });

  function formula(name, text) {
    const row = element("div", {class: "formula"}), copy = element("button", {type: "button"}, `Copy ${name}`);
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; } catch { getSelection().selectAllChildren(row.firstChild); }
    });
    row.append(element("code", {}, text), copy);
    return row;
  }

  function show() {
    lines.replaceChildren(...at(step).map((ys, index) => {
      const faded = chosen !== null && chosen !== index ? " faded" : "";
      return hued(drawn("path", {class: `group${faded}`, d: path(xs, ys, across, up)}), index, count);
    }));
    [...chips.children].forEach((chip, index) => chip.setAttribute("aria-pressed", String(index === chosen)));
    if (bars) {
      const kept = chosen === null ? layer.histograms : [layer.histograms[chosen]];
      const totals = kept[0].map((_, bin) => kept.reduce((sum, counts) => sum + counts[bin], 0)), most = Math.max(1, ...totals);
      const width = (WIDTH - RIGHT - LEFT) / totals.length;
      histogram.replaceChildren(...totals.map((total, bin) => drawn("rect", {class: "bar", x: LEFT + bin * width, width: width * 0.92,
        y: HEIGHT - 14 + (bars - 6) * (1 - total / most), height: (bars - 6) * total / most})));
    }
    const moved = layer.groups.map((each) => each.moved ?? Infinity), group = layer.groups[chosen ?? moved.indexOf(Math.max(...moved))];
    // It is the nearest to the function of the given checkpoint, not to those before.
    nearest.setAttribute("d", step === data.now ? path(xs, layer.known[group.nearest].map((y) => within(y * (group.factor ?? NaN))), across, up) : "");
    const inside = group.inside === null ? "" : ` ${(100 * group.inside).toFixed(1)}% of its inputs are in [-3, 3].`;
    about.textContent = `${chosen === null ? "Most moved: group" : "Group"} ${group.group}, by ${short(group.moved)}. Nearest: ${short(group.factor)} × ${group.nearest}, distance ${short(group.distance)}.${inside}`;
    if (group.flags.length) about.append(element("span", {class: "flag"}, ` ${group.flags.join(", ")}`));
    details.hidden = chosen === null;
    formulas.replaceChildren(element("span", {}, `Group ${group.group}, ${data.steps[data.now]}`), formula("text", group.text), formula("LaTeX", group.latex), formula("Python", group.python));
  }

  made.append(element("h3", {}, layer.name), element("p", {class: "start"}, `Start: ${layer.start.name}`), svg, chips, about, details);
  show();
  return {made, show, moved: Math.max(...layer.groups.map((group) => group.moved ?? Infinity))};
}

function curve(title, names, epochs) {
  const made = element("article", {class: "card"}), key = element("div", {class: "key"});
  const columns = names.map((name) => data.curves[name].map((value) => value ?? NaN));
  const xlimits = [Math.min(...epochs), Math.max(...epochs)], ylimits = limits(columns.flat());
  const across = scale(xlimits, LEFT, WIDTH - RIGHT), up = scale(ylimits, HEIGHT - BOTTOM, TOP);
  const svg = drawn("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} over the epochs`});
  axes(svg, xlimits, ylimits, across, up, HEIGHT - 5);
  names.forEach((name, index) => {
    const known = epochs.map((_, row) => row).filter((row) => Number.isFinite(columns[index][row]));
    const line = path(known.map((row) => epochs[row]), known.map((row) => columns[index][row]), across, up);
    svg.append(hued(drawn("path", {class: "group", d: line}), index, names.length));
    const entry = element("span");
    entry.append(hued(element("i"), index, names.length), name);
    key.append(entry);
  });
  made.append(element("h3", {}, title), svg, key);
  return made;
}

const cards = data.layers.map(card), grid = document.getElementById("cards");
const slider = document.getElementById("step"), label = document.getElementById("label"), play = document.getElementById("play");
const order = document.getElementById("order");

function arrange() {
  const sorted = order.value === "moved" ? [...cards].sort((one, other) => other.moved - one.moved) : cards;
  grid.replaceChildren(...sorted.map((each) => each.made));
}

function go(to) {
  step = to;
  slider.value = to;
  label.textContent = data.steps[to];
  cards.forEach((each) => each.show());
}

let timer = null;
function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

document.getElementById("controls").hidden = false;
document.getElementById("time").hidden = data.steps.length < 2;
slider.max = data.steps.length - 1;
order.addEventListener("change", arrange);
slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
play.addEventListener("click", () => {
  if (timer !== null) return stop();
  play.textContent = "Stop";
  go(step === data.steps.length - 1 ? 0 : step);
  timer = setInterval(() => step === data.steps.length - 1 ? stop() : go(step + 1), 600);
});
arrange();
go(data.now);

const names = Object.keys(data.curves).filter((name) => name !== "epoch");
const epochs = (data.curves.epoch ?? []).map((value, row) => value ?? row);
if (names.length && epochs.length) {
  const themes = [["Loss", (name) => name.endsWith("loss")], ["Accuracy in %", (name) => name.includes("top")], ["Learning rate", (name) => name === "lr"]];
  const charts = themes.map(([title, belongs]) => [title, names.filter(belongs)]).filter(([, found]) => found.length);
  document.getElementById("curves").append(...charts.map(([title, found]) => curve(title, found, epochs)));
  document.getElementById("run").hidden = !charts.length;
}

const table = document.getElementById("groups"), heads = [...table.tHead.rows[0].cells];
const key = (row, column) => {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
};
heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const falls = head.getAttribute("aria-sort") !== "descending";
  heads.forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [key(one, column), key(other, column)];
    const sign = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", {numeric: true}) : a - b;
    return falls ? -sign : sign;
  });
  table.tBodies[0].append(...rows);
}));
