// One card for each panel: what it shows follows from its kind, as in Grafana.

import { Chart } from "./chart.js";
import { el, replace } from "./dom.js";
import { number, time, words } from "./format.js";

const NUMERIC = /^(Nullable\()?(U?Int|Float|Decimal)/;
const TIMES = /DateTime/;
const TONES = { open: "bad", alarmed: "bad", raised: "bad", critical: "bad", error: "bad", failed: "bad", resolved: "good", cleared: "good", quiet: "good", warning: "warn", immaterial: "warn", acknowledged: "accent", mitigated: "good", triaged: "warn", detected: "warn" };
const BADGED = new Set(["status", "severity", "last_state", "transition", "stage"]);

export function badge(text) {
  return el("span", { class: `badge ${TONES[text] ?? ""}` }, text);
}

function tone(panel, value) {
  const reached = panel.thresholds.filter((t) => value !== null && value >= t.value).at(-1);
  return reached?.colour ?? "";
}

class Stat {
  constructor(panel) {
    this.panel = panel;
    this.value = el("div", { class: "value" }, "…");
    this.element = el("section", { class: "card stat", span: panel.width, title: panel.description }, el("h3", {}, panel.title), this.value);
  }

  update(result) {
    const value = result.data?.[0]?.[0] ?? null;
    const [, amount, unit] = number(value, this.panel.unit).match(/^(\S+?)(?:\s(.*))?$/u) ?? [null, "–", ""];
    replace(this.value, document.createTextNode(amount), unit ? el("small", {}, unit) : null);
    const level = tone(this.panel, value);
    this.value.className = `value ${level} ${value === null ? "none" : ""}`;
    this.value.setAttribute("aria-label", `${number(value, this.panel.unit)}${level === "red" ? ", high" : level === "yellow" ? ", raised" : ""}`);
  }
}

class Card {
  constructor(panel) {
    this.panel = panel;
    this.body = el("div", {}, el("p", { class: "empty" }, "…"));
    const hint = el("button", { class: "hint", title: panel.description, "aria-label": `About: ${panel.description}`, "aria-expanded": "false", type: "button" }, "?");
    const note = el("p", { class: "note", hidden: true }, panel.description);
    hint.addEventListener("click", () => { note.hidden = !note.hidden; hint.setAttribute("aria-expanded", String(!note.hidden)); });
    this.element = el("section", { class: "card", span: panel.width }, el("header", {}, el("h3", {}, panel.title), hint), note, this.body);
  }

  update(result, span, marks) {
    if (result.data.length) return this.fill(result, span, marks);
    this.chart = null;
    return replace(this.body, el("p", { class: "empty" }, "Nothing in this time range"));
  }
}

class Series extends Card {
  fill(result, span, marks) {
    if (!this.chart) {
      this.chart = new Chart(this.panel, Math.max(150, this.panel.height * 25));
      replace(this.body, this.chart.element);
    }
    this.chart.update(result, span, marks);
  }
}

class Bars extends Card {
  fill(result) {
    const top = Math.max(...result.data.map((row) => Number(row[1])), 0) || 1;
    const cells = result.data.flatMap(([name, value]) => [
      el("div", { class: "name", title: name }, name || "–"),
      el("div", { class: "track" }, el("div", { "width%": (100 * value) / top })),
      el("b", {}, number(Number(value), this.panel.unit)),
    ]);
    replace(this.body, el("div", { class: "bars" }, cells));
  }
}

function cell(value, type, column, record) {
  if (value === null) return "–";
  if (column.opens === "incident") return el("a", { href: `#/incident/${encodeURIComponent(record.incident_id)}` }, value);
  if (column.opens === "monitor") return el("a", { href: `#/quality?${new URLSearchParams({ monitor: record.monitor, signal: record.signal })}` }, value);
  if (column.leads_to?.length && value !== "") {
    const chosen = Object.fromEntries(column.leads_to.map((d) => [d, record[d]]));
    return el("a", { href: `#/requests?${new URLSearchParams(chosen)}` }, value);
  }
  if (TIMES.test(type)) return time(value);
  if (NUMERIC.test(type)) return number(Number(value), column.unit ?? "none");
  if (BADGED.has(column.name)) return badge(String(value));
  return Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function table(result, columns = []) {
  const known = Object.fromEntries(columns.map((column) => [column.name, column]));
  const shown = result.meta.map((column, i) => ({ ...column, i }));
  const isNumber = (column) => NUMERIC.test(column.type);
  const head = shown.map((c) => el("th", { class: isNumber(c) ? "number" : "", scope: "col" }, words(c.name)));
  const names = result.meta.map((column) => column.name);
  const body = result.data.map((row) => {
    const record = Object.fromEntries(row.map((value, i) => [names[i], value]));
    return el("tr", {}, shown.map((c) => {
      const text = typeof row[c.i] === "string" && row[c.i].length > 70;
      return el("td", { class: isNumber(c) ? "number" : text ? "long" : "" }, cell(row[c.i], c.type, known[c.name] ?? { name: c.name }, record));
    }));
  });
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

class Table extends Card {
  fill(result) {
    const said = JSON.stringify(result.data);
    // A table that stands still keeps its scroll, its selection and its focus.
    if (said === this.said && this.body.querySelector("table")) return;
    this.said = said;
    replace(this.body, table(result, this.panel.columns));
  }
}

const KINDS = { stat: Stat, timeseries: Series, barchart: Bars, table: Table };

export function card(panel) {
  const made = new KINDS[panel.kind](panel);
  const update = made.update.bind(made);
  made.update = (result, span, marks) => {
    if (!result) return;
    if (!result.error) return update(result, span, marks);
    made.chart = null;
    const says = el("p", { class: "failed", role: "alert" }, result.error);
    if (made.body) replace(made.body, says); else replace(made.value, document.createTextNode("–"));
  };
  return made;
}
