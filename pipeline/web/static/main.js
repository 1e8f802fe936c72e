// Which view is shown, and when it is brought up to date: every two seconds while somebody looks.

import * as api from "./api.js";
import { el, replace } from "./dom.js";
import * as views from "./views.js";

const main = document.getElementById("main");
const live = document.getElementById("live");
const range = document.getElementById("range");
const state = { boards: null, view: null, timer: 0, turn: 0 };

range.value = sessionStorage.getItem("range") ?? "3600";

function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  const parameters = Object.fromEntries(new URLSearchParams(query ?? ""));
  return { name: name || "overview", parameters: id ? { ...parameters, id: decodeURIComponent(id) } : parameters };
}

function context({ parameters }) {
  return {
    boards: state.boards, parameters,
    get span() { return { range: Number(range.value) }; },
    go(name, chosen) {
      const query = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
      location.hash = `#/${name}${query.size ? `?${query}` : ""}`;
    },
    refresh: () => refresh(),
    count: (open) => badgeOf(open),
  };
}

const SPECIAL = { overview: views.overview, quality: views.quality, incidents: views.incidents, incident: views.incident, sql: views.sql };

function show() {
  const where = read();
  const here = context(where);
  const make = SPECIAL[where.name] ?? (state.boards[where.name] ? () => views.boardView(here, state.boards[where.name]) : null);
  if (!make) return void (location.hash = "#/overview");
  state.view = make(here);
  main.replaceChildren(state.view.element);
  document.body.dataset.view = where.name;
  for (const link of document.querySelectorAll("#nav a")) {
    const own = link.hash.slice(2);
    link.toggleAttribute("aria-current", own === where.name || (own === "incidents" && where.name === "incident"));
    if (link.hasAttribute("aria-current")) link.setAttribute("aria-current", "page");
  }
  document.title = `${document.querySelector("#nav a[aria-current]")?.firstChild.textContent ?? "Incident"} · Kizashi`;
  refresh();
}

function badgeOf(open) {
  const link = document.querySelector('#nav a[href="#/incidents"]');
  link.querySelector(".count")?.remove();
  if (open) link.append(el("span", { class: "count", "aria-label": `${open} open` }, String(open)));
}

function about(answer) {
  const demo = answer?.about?.demo;
  const bar = document.getElementById("progress");
  bar.hidden = !demo;
  if (demo) bar.firstElementChild.style.width = `${demo.share * 100}%`;
  live.className = "live";
  live.textContent = demo ? (demo.share < 1 ? `Demo · ${Math.round(demo.speed)}×` : "Demo · ended") : "Live";
}

const pause = () => (Number(range.value) <= 3600 ? 2000 : Number(range.value) <= 21600 ? 5000 : 30000);

async function refresh() {
  clearTimeout(state.timer);
  const turn = ++state.turn;
  try {
    const answer = await state.view.update();
    if (turn !== state.turn) return;
    if (answer) about(answer);
    main.dataset.updated = String(Date.now());
  } catch (error) {
    if (turn !== state.turn) return;
    if (error instanceof api.Unauthorized) return askForToken();
    live.className = "live lost";
    live.textContent = "Connection lost, trying again";
  }
  if (!state.view.still && !document.hidden) state.timer = setTimeout(refresh, pause());
}

function askForToken() {
  const input = el("input", { type: "password", autocomplete: "current-password", "aria-label": "Token" });
  const form = el("form", { class: "card key" }, el("h1", {}, "Kizashi"), el("p", { class: "note" }, "This page wants the token of ", el("code", {}, "[web] token"), "."), input, el("button", { class: "primary" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", input.value.trim());
    start();
  });
  replace(main, form);
  input.focus();
}

async function start() {
  try {
    const answer = await api.boards();
    state.boards = Object.fromEntries(answer.boards.map((board) => [board.name, board]));
    about(answer);
    show();
  } catch (error) {
    if (error instanceof api.Unauthorized) return askForToken();
    replace(main, el("p", { class: "loading" }, "Kizashi does not answer. Trying again …"));
    setTimeout(start, 2000);
  }
}

addEventListener("hashchange", () => { if (state.boards) { show(); scrollTo(0, 0); } });
range.addEventListener("change", () => { sessionStorage.setItem("range", range.value); if (state.view) refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.view) refresh(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.boards) show(); });
start();
