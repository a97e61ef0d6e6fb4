// Draws the queue and the writer. They are requested every two seconds while the page is visible.
const EVERY_MS = 2000;
const POINTS = 120;
const HEIGHT = 40;
const figures = document.getElementById("figures");
const lines = { queue: [], rate: [], ack: [], commit: [] };
let before = null;

const count = (value) => Math.round(value).toLocaleString("en");
const duration = (value) =>
  value >= 1 ? `${value.toFixed(1)} s` : `${(value * 1000).toFixed(1)} ms`;
const units = { queue: count, rate: count, ack: duration, commit: duration };

function draw(name) {
  const known = lines[name].filter((value) => value !== null);
  const highest = Math.max(...known, 0);
  const first = POINTS - lines[name].length;
  const points = lines[name].map((value, index) =>
    `${first + index},${HEIGHT - (HEIGHT - 2) * ((value ?? 0) / (highest || 1)) - 1}`);
  document.querySelector(`[data-line=${name}]`).setAttribute("points", points.join(" "));
  const last = lines[name].at(-1) ?? null;
  document.querySelector(`[data-value=${name}]`).textContent = last === null ? "–" : units[name](last);
  document.querySelector(`[data-highest=${name}]`).textContent = units[name](highest);
}

async function ask() {
  if (document.hidden) return;
  const answer = await fetch(figures.dataset.stats, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const { writer } = await answer.json();
  const now = performance.now();
  const rate = before && ((writer.acked_records - before.records) * 1000) / (now - before.at);
  before = { records: writer.acked_records, at: now };
  const values = { queue: writer.queued_records, rate, ack: writer.ack_p99_s, commit: writer.commit_p99_s };
  for (const [name, value] of Object.entries(values)) {
    lines[name] = [...lines[name], value].slice(-POINTS);
    draw(name);
  }
}

async function repeat() {
  try {
    await ask();
  } catch {
    // The server does not answer: the plots stay as they are until it does.
  }
  setTimeout(repeat, EVERY_MS);
}

if (document.querySelector("[data-line]")) repeat();
