// Shows records as they are committed. The browser reconnects by itself, and continues after the
// last event it got.
const MOST = 200;
const list = document.getElementById("feed");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
const template = document.getElementById("record");
let held = [];

function fact(name, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const said = document.createElement("dd");
  const text = document.createElement("bdi");
  term.textContent = name;
  text.textContent = value;
  said.append(text);
  row.append(term, said);
  return row;
}

function pairs(values) {
  return Object.entries(values).map(([key, value]) =>
    `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
}

function element(record) {
  const item = template.content.firstElementChild.cloneNode(true);
  const event = item.querySelector(".event");
  const known = ["ADD", "UPDATE", "DELETE"].includes(record.event);
  event.textContent = record.event.slice(0, 20);
  event.classList.add(`event-${known ? record.event.toLowerCase() : "other"}`);
  const time = item.querySelector("time");
  if (record.occurred_at) {
    const at = new Date(record.occurred_at);
    time.dateTime = record.occurred_at;
    time.textContent = at.toISOString().slice(0, 19).replace("T", " ");
  }
  const link = item.querySelector("a");
  link.href = `${list.dataset.memory}?memory_id=${encodeURIComponent(record.memory_id)}`;
  link.firstElementChild.textContent = record.memory_id.slice(0, 120);
  const text = item.querySelector(".text");
  for (const [name, tag] of [["old_memory", "del"], ["new_memory", "ins"]]) {
    if (typeof record[name] !== "string" || (record.event === "ADD" && tag === "del")) continue;
    const part = document.createElement(record.event === "ADD" ? "span" : tag);
    part.textContent = record[name].slice(0, 600);
    text.append(part, (record.cut ?? []).includes(name) || record[name].length > 600 ? "… " : " ");
  }
  const facts = item.querySelector(".facts");
  if (record.actor_id) facts.append(fact("actor", record.actor_id));
  if (record.owner) facts.append(fact("owner", pairs(record.owner)));
  if (record.cause) facts.append(fact("cause", pairs(record.cause)));
  return item;
}

function add(records) {
  list.prepend(...records.map(element).reverse());
  while (list.children.length > MOST) list.lastElementChild.remove();
}

const source = new EventSource(list.dataset.follow);
source.onopen = () => { state.textContent = "Following."; };
source.onerror = () => {
  const ended = source.readyState === EventSource.CLOSED;
  state.textContent = ended ? "The feed has ended. Reload the page." : "Connecting again…";
};
source.onmessage = (message) => {
  const record = JSON.parse(message.data);
  if (pause.getAttribute("aria-pressed") === "true") {
    held.push(record);
    held = held.slice(-MOST);
    state.textContent = `Paused; ${held.length} new.`;
  } else {
    add([record]);
  }
};
source.addEventListener("problem", (message) => {
  source.close();
  state.textContent = JSON.parse(message.data).detail;
});

pause.hidden = false;
pause.addEventListener("click", () => {
  const paused = pause.getAttribute("aria-pressed") !== "true";
  pause.setAttribute("aria-pressed", String(paused));
  state.textContent = paused ? "Paused." : "Following.";
  if (!paused) {
    add(held);
    held = [];
  }
});
