// What each view is made of, and how it is brought up to date. A view is { element, update }.

import * as api from "./api.js";
import { el, replace } from "./dom.js";
import { duration, number, time, words } from "./format.js";
import { badge, card, table } from "./panels.js";

const panels = (board) => board.rows.flatMap((row) => row.panels);
const named = (board, title) => panels(board).find((panel) => panel.title === title);
const CHECK = '<path d="M4 10.5l4 4 8-9" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round"/>';

function icon(path) {
  const svg = new DOMParser().parseFromString(`<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20" viewBox="0 0 20 20" aria-hidden="true">${path}</svg>`, "image/svg+xml");
  return svg.documentElement;
}

function heading(title, description, ...tools) {
  return el("div", { class: "top" }, el("div", {}, el("h1", {}, title), description ? el("p", {}, description) : null), el("div", { class: "filters" }, tools));
}

// --- A board as it is defined ------------------------------------------------------------------

function cards(rows) {
  const made = new Map();
  const elements = rows.flatMap((row) => {
    const grid = row.panels.map((panel) => {
      made.set(panel.id, card(panel));
      return made.get(panel.id).element;
    });
    return [row.title ? el("h2", {}, row.title) : null, el("div", { class: "grid" }, grid)];
  });
  return { made, elements };
}

async function fill(board, made, context, chosen, span = context.span) {
  const wanted = panels(board).filter((panel) => made.has(panel.id));
  const answer = await api.board(board.name, span, chosen, wanted);
  const marks = api.rows(answer.panels.marks);
  for (const [id, each] of made) each.update(answer.panels[id], answer.span, marks);
  return answer;
}

function filters(board, context) {
  return board.variables.map((name) => {
    const all = `All ${words(name).toLowerCase()}s`.replace("request models", "models");
    const select = el("select", { "aria-label": words(name) }, el("option", { value: "" }, all));
    const now = context.parameters[name];
    if (now) select.append(el("option", { value: now, selected: true }, now));
    select.addEventListener("change", () => context.go(board.name, { ...context.parameters, [name]: select.value }));
    return { name, select };
  });
}

async function offer(board, made) {
  if (!made.length) return;
  const answer = await api.options(board.name);
  for (const { name, select } of made) {
    const known = new Set([...select.options].map((option) => option.value));
    for (const [value] of answer[name].data ?? []) if (!known.has(value)) select.append(el("option", { value }, value));
  }
}

export function boardView(context, board, rows = board.rows, before = []) {
  const choices = filters(board, context);
  const { made, elements } = cards(rows);
  const nothing = el("div", { class: "card", hidden: true }, nothingYet());
  const element = el("div", {}, heading(board.title, board.description, choices.map((c) => c.select)), before, nothing, elements);
  let offered = false;
  return {
    element,
    async update() {
      if (!offered) { offered = true; offer(board, choices).catch(() => { offered = false; }); }
      const answer = await fill(board, made, context, context.parameters);
      const series = panels(board).filter((panel) => panel.kind === "timeseries" && made.has(panel.id));
      nothing.hidden = !series.length || series.some((panel) => answer.panels[panel.id]?.data?.length !== 0);
      return answer;
    },
  };
}

function nothingYet() {
  return el("div", {}, el("h3", {}, "No requests in this time range"),
    el("p", { class: "note" }, "Choose a longer range above, or send some: ", el("code", {}, "kizashi demo"), " plays an hour of a simulated company, ", el("code", {}, "kizashi produce FILE"), " sends a file to Kafka, and ", el("code", {}, "kizashi doctor"), " says what keeps a worker from reading."));
}

// --- Overview ----------------------------------------------------------------------------------

export function overview(context) {
  const board = context.boards.overview;
  const incidents = named(context.boards.incidents, "Incidents");
  const state = el("div", { "aria-live": "polite" });
  const view = boardView(context, board, board.rows, [state]);
  let said = "";
  return {
    element: view.element,
    async update() {
      const [answer, told] = await Promise.all([view.update(), api.board("incidents", context.span, {}, [incidents])]);
      const open = api.rows(told.panels[incidents.id]).filter((row) => row.status !== "resolved");
      if (JSON.stringify(open) !== said) replace(state, open.length ? open.slice(0, 4).map(incidentCard) : quiet());
      said = JSON.stringify(open);
      context.count(open.length);
      return answer;
    },
  };
}

function quiet() {
  return el("div", { class: "banner" }, icon(CHECK), el("div", {}, "All quiet ", el("span", {}, "– no open incidents")));
}

// --- Incidents ---------------------------------------------------------------------------------

function sentences(text) {
  const end = text.search(/\. (?=[A-Z])/);
  return end < 0 ? [text, ""] : [text.slice(0, end + 1), text.slice(end + 2)];
}

function incidentCard(row) {
  const over = row.status === "resolved";
  const tone = over ? "resolved" : row.severity === "info" ? "info" : "";
  const lasted = (Number(row.resolved_at ?? 0) || 0) - Number(row.opened_at);
  return el("a", { class: `card incident ${tone}`, href: `#/incident/${encodeURIComponent(row.incident_id)}` },
    el("div", { class: "meta" }, badge(over ? "resolved" : row.stage ?? row.status), over ? null : badge(row.severity), el("span", {}, words(row.family)),
      el("span", {}, `opened ${time(row.opened_at)}`), over ? el("span", {}, `lasted ${duration(lasted)}`) : null),
    el("div", { class: "what" }, sentences(row.summary)[0]),
    el("div", { class: "why" }, `${row.explained_by} explains ${number(row.share, "percentunit")}`));
}

export function incidents(context) {
  const board = context.boards.incidents;
  const list = named(board, "Incidents");
  const place = el("div");
  const [totals, lists] = board.rows;
  const rest = { title: "Behind them", panels: lists.panels.filter((panel) => panel !== list) };
  const first = cards([{ ...totals, title: "" }]);
  const last = cards([rest]);
  const made = new Map([...first.made, ...last.made, [list.id, { update: show }]]);
  let said = "";

  function show(result) {
    if (result.error) return replace(place, el("p", { class: "failed" }, result.error));
    const rows = api.rows(result);
    context.count(rows.filter((row) => row.status !== "resolved").length);
    if (JSON.stringify(rows) === said) return;
    said = JSON.stringify(rows);
    replace(place, rows.length ? rows.map(incidentCard) : el("div", {}, quiet(), el("p", { class: "empty" }, "None in this time range. A longer one may have some.")));
  }

  return {
    element: el("div", {}, heading(board.title, board.description), first.elements, el("h2", {}, "Incidents"), place, last.elements),
    update: () => fill(board, made, context, {}),
  };
}

// --- One incident ------------------------------------------------------------------------------

const STAGES = [["changed_ms", "Changed"], ["opened_ms", "Detected"], ["triaged_ms", "Triaged"], ["acknowledged_ms", "Acknowledged"], ["mitigated_ms", "Mitigated"], ["resolved_ms", "Resolved"]];

function life(incident) {
  const times = { ...incident, changed_ms: incident.change_time_ms };
  const stages = STAGES.filter(([key]) => times[key] !== undefined || ["acknowledged_ms", "resolved_ms"].includes(key));
  const done = stages.filter(([key]) => times[key]);
  return el("ol", { class: "life", "aria-label": "How it went" }, stages.map(([key, name], i) => {
    const at = times[key];
    const previous = stages.slice(0, i).map(([k]) => times[k]).filter(Boolean).at(-1);
    const by = times[key.replace("_ms", "_by")];
    const last = at && done.at(-1)[0] === key;
    return el("li", { class: `${at ? "done" : ""} ${last ? "last" : ""}` }, el("b", {}, name),
      at ? el("time", { datetime: new Date(at).toISOString() }, time(at / 1000)) : el("small", {}, "not yet"),
      at && previous && at > previous ? el("small", {}, `+${duration(Math.max(0, (at - previous) / 1000))}`) : null, by ? el("small", {}, `by ${by}`) : null);
  }));
}

const labels = (map) => Object.entries(map).map(([name, value]) => `${name}=${value}`).join(", ") || "all traffic";
const rate = ({ count, total }) => (total ? count / total : 0);

function compare(cause) {
  const top = Math.max(rate(cause.before), rate(cause.after)) || 1;
  const bar = (name, each, kind) => [
    el("span", {}, name), el("div", { class: `track ${kind}` }, el("div", { "width%": (100 * rate(each)) / top })),
    el("span", {}, el("b", {}, each.total ? number(rate(each), "percentunit") : "–"), " ", el("small", {}, each.total ? `${each.count.toLocaleString("en")} of ${each.total.toLocaleString("en")}` : "no traffic"))];
  return el("div", { class: "compare" }, bar("Before", cause.before, ""), bar("Since", cause.after, "after"));
}

function explanation(incident) {
  const others = (incident.explanation ?? []).slice(0, 5);
  if (others.length < 2) return null;
  return el("div", { class: "bars" }, others.flatMap((each) => [
    el("div", { class: "name", title: labels(each.labels) }, labels(each.labels)),
    el("div", { class: "track" }, el("div", { "width%": 100 * each.share })), el("b", {}, number(each.share, "percentunit"))]));
}

const power = (value) => (value < 1e4 ? number(value) : `10${[...String(Math.floor(Math.log10(value)))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`);

function facts(incident) {
  const first = incident.alarms[0];
  const sure = first && first.e_value > 1 ? `odds of ${power(first.e_value)} to 1 against chance; an alarm needs ${number(first.threshold)}` : "–";
  const known = [
    ["Symptom", incident.symptom && words(incident.symptom)], ["Likely root cause", incident.root_cause && words(incident.root_cause)],
    ["How sure", sure], ["Alarms", `${incident.alarms.length}, of which ${(incident.cleared ?? []).length} have cleared`],
    ["What moved", incident.moved], ["Merged into", incident.merged_into], ["Incident", incident.incident_id]];
  return el("dl", { class: "facts" }, known.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function monitorLinks(incident) {
  const seen = new Map(incident.alarms.map((a) => [`${labels(a.monitor)} ${a.signal}`, a]));
  return el("p", { class: "note" }, "Its monitors: ", [...seen.values()].slice(0, 8).flatMap((a, i) => [i ? " · " : "",
    el("a", { href: `#/quality?${new URLSearchParams({ monitor: labels(a.monitor), signal: a.signal })}` }, `${labels(a.monitor)} (${words(a.signal).toLowerCase()})`)]));
}

export function incident(context) {
  const board = context.boards.incident;
  const story = named(board, "Incident");
  const others = cards([{ title: "", panels: panels(board).filter((panel) => panel !== story) }]);
  const place = el("div", {}, el("p", { class: "loading" }, "Loading …"));
  const chosen = { incident: context.parameters.id };
  let said = "";

  function tell(told) {
    const [headline, rest] = sentences(told.summary);
    const over = told.status === "resolved";
    const share = number(told.cause.share, "percentunit");
    return [
      el("section", { class: `card incident ${over ? "resolved" : told.severity === "info" ? "info" : ""}` },
        el("div", { class: "meta" }, badge(told.status), badge(told.severity), el("span", {}, words(told.family)), told.is_mix_shift ? badge("traffic moved") : null),
        el("h1", { class: "lead" }, headline), rest ? el("p", { class: "rest" }, rest) : null,
        told.suggestion ? el("p", { class: "todo" }, el("b", {}, "Try first: "), told.suggestion) : null, life(told)),
      el("div", { class: "story" },
        el("section", { class: "card" }, el("header", {}, el("h3", {}, `Before and since, inside ${labels(told.cause.labels)}`)), compare(told.cause),
          el("p", { class: "note" }, el("br"), `This slice of the traffic carries ${share} of the change.`), explanation(told)),
        el("section", { class: "card" }, el("header", {}, el("h3", {}, "What is known")), facts(told), el("br"), monitorLinks(told))),
    ];
  }

  return {
    element: el("div", {}, el("p", {}, el("a", { href: "#/incidents" }, "← Incidents")), place, el("h2", {}, "Evidence"), others.elements),
    async update() {
      const answer = await api.board(board.name, context.span, chosen, [story]);
      const [row] = api.rows(answer.panels[story.id]);
      if (!row) return replace(place, el("p", { class: "empty" }, "There is no such incident (any more)."));
      const told = JSON.parse(row.incident);
      if (row.incident !== said) replace(place, tell(told));
      said = row.incident;
      const from = told.change_time_ms / 1000 - 1800;
      const end = Math.min(answer.span.end_s, (told.resolved_ms ?? Infinity) / 1000 + 900);
      const range = Math.max(1800, Math.min(86400 * 7, Math.ceil(end - from)));
      await fill(board, others.made, context, chosen, { range, end: from + range });
      return answer;
    },
  };
}

// --- Quality -----------------------------------------------------------------------------------

function progress(row) {
  return Math.max(0, row.log_threshold ? row.log_evidence / row.log_threshold : 0);
}

export function quality(context) {
  const board = context.boards.quality;
  const detail = context.boards.monitor;
  const evidence = named(board, "Evidence against the threshold");
  const list = el("div", { class: "card monitors", role: "group", "aria-label": "Monitors, the nearest to an alarm first" });
  const title = el("h2", { class: "plain" });
  const pictures = cards([{ title: "", panels: panels(detail) }]);
  const rest = board.rows.map((row) => ({ ...row, panels: row.panels.filter((panel) => panel !== evidence) }));
  const whole = el("div", { class: "split" }, el("div", {}, el("h2", {}, "Monitors"), list), el("div", {}, title, pictures.elements));
  const view = boardView(context, board, rest.map((row) => (row.panels.length === 1 ? { ...row, panels: [{ ...row.panels[0], width: 24 }] } : row)), [whole]);
  let chosen = context.parameters.monitor ? { monitor: context.parameters.monitor, signal: context.parameters.signal ?? "" } : null;
  let said = "";

  function choose(row) {
    chosen = { monitor: row.monitor, signal: row.signal };
    said = "";
    context.refresh();
  }

  function draw(rows) {
    const now = JSON.stringify([rows, chosen]);
    if (now === said) return;
    const focused = document.activeElement?.dataset?.key;
    said = now;
    replace(list, rows.length ? rows.slice(0, 60).map((row) => monitor(row, chosen, () => choose(row))) : el("p", { class: "empty" }, "No monitor has learnt its baseline yet: each needs some hundreds of requests."));
    if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  return {
    element: view.element,
    async update() {
      const filter = Object.fromEntries(board.variables.map((name) => [name, context.parameters[name] ?? ""]));
      const answer = await api.board(board.name, context.span, filter, [evidence]);
      const rows = api.rows(answer.panels[evidence.id]).sort((a, b) => progress(b) - progress(a));
      if (!chosen && rows.length) chosen = { monitor: rows[0].monitor, signal: rows[0].signal };
      draw(rows);
      whole.hidden = false;
      if (chosen) {
        replace(title, document.createTextNode(`${chosen.monitor} – ${words(chosen.signal).toLowerCase()}`));
        await fill(detail, pictures.made, context, chosen);
      }
      await view.update();
      return answer;
    },
  };
}

function monitor(row, chosen, act) {
  const on = chosen && chosen.monitor === row.monitor && chosen.signal === row.signal;
  const reached = progress(row);
  const change = row.current_rate === null ? "–" : `${number(row.baseline_rate, "percentunit")} → ${number(row.current_rate, "percentunit")}`;
  return el("button", { class: "monitor", type: "button", "aria-pressed": String(!!on), "data-key": `${row.monitor}/${row.signal}`, onclick: act },
    el("span", { class: "who", title: row.monitor }, row.monitor), el("span", { class: "rate" }, change),
    el("span", { class: "what" }, words(row.signal)), row.last_state === "quiet" ? el("span", { class: "what" }, `${Math.round(100 * Math.min(1, reached))} % of the way`) : badge(row.last_state),
    el("span", { class: `meter ${reached >= 1 ? "over" : ""}` }, el("div", { "width%": 100 * reached })));
}

// --- SQL ---------------------------------------------------------------------------------------

const EXAMPLES = {
  "Cost by tenant": "SELECT tenant, sum(requests) AS requests, round(toFloat64(sum(cost_usd)), 2) AS usd\nFROM rollup_1m\nWHERE grouping = 'tenant' AND minute > now() - INTERVAL 1 DAY\nGROUP BY tenant\nORDER BY usd DESC",
  "Refusals by prompt version": "SELECT prompt_name, prompt_version, sum(refusals) AS refused, sum(answered) AS answered,\n       round(100 * refused / answered, 1) AS percent\nFROM rollup_1m\nWHERE grouping = 'prompt_name,prompt_version'\nGROUP BY prompt_name, prompt_version\nORDER BY percent DESC",
  "Slowest requests": "SELECT event_time, request_model, route, duration_s, output_tokens\nFROM requests\nORDER BY duration_s DESC\nLIMIT 20",
  "Tables": "SHOW TABLES",
};

export function sql(context) {
  const box = el("textarea", { spellcheck: "false", autocapitalize: "off", autocomplete: "off", "aria-label": "SQL", placeholder: "SELECT …" });
  box.value = context.parameters.q ?? sessionStorage.getItem("sql") ?? Object.values(EXAMPLES)[0];
  const run = el("button", { class: "primary", type: "button", onclick: ask }, "Run");
  const state = el("span", { role: "status" }, "Ctrl + Enter");
  const place = el("div", { class: "card", hidden: true });
  box.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
  const examples = Object.entries(EXAMPLES).map(([name, text]) => el("button", { type: "button", onclick: () => { box.value = text; ask(); } }, name));

  async function ask() {
    if (!box.value.trim() || run.disabled) return;
    sessionStorage.setItem("sql", box.value);
    run.disabled = true;
    state.textContent = "Asking …";
    const began = performance.now();
    try {
      const answer = await api.sql(box.value);
      if (answer.error) return fail(answer.error);
      show(answer, performance.now() - began);
    } catch (error) {
      fail(error.message);
    } finally {
      run.disabled = false;
    }
  }

  function fail(message) {
    state.textContent = "Refused";
    place.hidden = false;
    replace(place, el("p", { class: "failed mono", role: "alert" }, message));
  }

  function show({ rows, result }, took) {
    const more = result.data.length > rows;
    result.data = result.data.slice(0, rows);
    state.textContent = `${more ? "The first " : ""}${result.data.length.toLocaleString("en")} row${result.data.length === 1 ? "" : "s"} in ${duration(took / 1000)}${more ? "; there are more" : ""}`;
    place.hidden = false;
    const plain = { ...result, meta: result.meta.map((column) => ({ ...column, type: column.type.replace(/DateTime\w*/, "Text") })) };
    replace(place, result.data.length ? table(plain) : el("p", { class: "empty" }, "No rows"));
  }

  return {
    element: el("div", { class: "ask" }, heading("SQL", "Read-only questions to what is stored. requests has every request, rollup_1m has counts by the minute."),
      el("div", { class: "card" }, box, el("div", { class: "row" }, run, state), el("div", { class: "row examples" }, "Try: ", examples)), el("br"), place),
    update: async () => null,
    still: true,
  };
}
