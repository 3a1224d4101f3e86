"use strict";
// Everything shown arrives as text and is placed as text (textContent), never as markup. Elements are kept and only what
// differs is written, so that focus, open details and a screen reader's place survive each refresh.
const EVERY = 1000, PATIENCE = 5000;
const byId = (id) => document.getElementById(id);
const put = (element, text) => { if (element.textContent !== String(text)) element.textContent = text; };

function children(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
  return [...parent.children];
}

function element(tag, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  return made;
}

function table(body, rows, words) {
  const bodyRows = children(body, rows.length, () => element("tr"));
  rows.forEach(({ cells, trouble }, i) => {
    bodyRows[i].className = trouble ? "trouble" : "";
    const made = children(bodyRows[i], cells.length, () => element(bodyRows[i].children.length ? "td" : "th"));
    made.forEach((cell, k) => {
      if (k === 0) cell.scope = "row";
      cell.className = words.includes(k) ? "word" : "";
      if (words.includes(k) && k === cells.length - 1) cell.className = "word cause";
      put(cell, cells[k]);
    });
  });
}

function show(section, run, number) {
  for (const name of ["name", "state", "said", "done", "rounds", "left", "unlisted"]) {
    put(section.querySelector(`[data-of=${name}]`), run[name]);
  }
  const title = section.querySelector("h2");
  title.id = `run-${number}`;
  section.setAttribute("aria-labelledby", title.id);
  section.querySelector(".state").className = `state ${run.state}`;
  section.querySelector(".remaining").hidden = run.state !== "live";
  const bar = section.querySelector("progress");
  bar.max = Math.max(1, run.rounds);
  bar.value = run.done;
  bar.setAttribute("aria-label", `rounds done of ${run.name}`);
  const tiles = section.querySelector(".tiles");
  tiles.hidden = !run.figures.length;
  children(tiles, run.figures.length, () => {
    const made = element("li");
    made.append(element("h3"), element("p", "big"));
    return made;
  }).forEach((tile, i) => { put(tile.children[0], run.figures[i][0]); put(tile.children[1], run.figures[i][1]); });
  const nodes = run.nodes.map((n) => ({ cells: [n.name, n.state, n.round, n.seen, n.cause], trouble: n.cause }));
  const failures = run.failures.map((f) => ({ cells: [f.when, f.round, f.who, f.cause] }));
  for (const [name, rows, words] of [["nodes", nodes, [1, 4]], ["failures", failures, [2, 3]]]) {
    const body = section.querySelector(`.${name}`);
    body.closest(".part").hidden = !rows.length;
    body.closest(".scroll").setAttribute("aria-label", `${name} of ${run.name}`);
    table(body, rows, words);
  }
  children(section.querySelector(".facts"), run.facts.length, () => {
    const made = element("div");
    made.append(element("dt"), element("dd"));
    return made;
  }).forEach((fact, i) => { put(fact.children[0], run.facts[i][0]); put(fact.children[1], run.facts[i][1]); });
}

function all(runs) {
  const several = runs.length > 1;
  byId("overview").hidden = !several;
  table(byId("overview-rows"), !several ? [] : runs.map((r) => ({
    cells: [r.name, r.state, `${r.done}/${r.rounds}`, r.left, r.figures.length ? r.figures[0].join(" ") : "–",
      String(r.nodes.filter((n) => n.cause).length || "–")],
    trouble: ["dead", "failed", "unreadable"].includes(r.state),
  })), [1, 4]);
  const make = () => byId("run").content.firstElementChild.cloneNode(true);
  children(byId("runs"), runs.length, make).forEach((section, i) => show(section, runs[i], i));
  // Only changes of state are announced; the count of rounds is there to be read when wanted.
  put(byId("told"), runs.map((r) => `${r.name}: ${r.state}`).join(". "));
  document.title = runs.length === 1 ? `${runs[0].state} ${runs[0].done}/${runs[0].rounds} ${runs[0].name} – Weft status`
    : `${runs.filter((r) => r.state === "live").length} live of ${runs.length} – Weft status`;
}

async function ask() {
  const trouble = byId("trouble");
  try {
    const answer = await fetch("/status.json", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error || answer.statusText);
    all(said.runs);
    trouble.hidden = true;
  } catch (error) {
    put(trouble, `No news: ${error.message}. What stands below is old.`);
    trouble.hidden = false;
  }
  setTimeout(ask, EVERY);
}

ask();
