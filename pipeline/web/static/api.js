// What the server is asked. The token, where one is wanted, stays in this tab.

export class Unauthorized extends Error {}

async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.status === 401) throw new Unauthorized();
  const text = await response.text();
  if (!response.ok && !text.startsWith("{")) throw new Error(text.trim() || `status ${response.status}`);
  return JSON.parse(text);
}

function query(span, chosen, only) {
  const parameters = new URLSearchParams({ range: span.range });
  if (span.end) parameters.set("end", Math.round(span.end));
  for (const [name, value] of Object.entries(chosen)) if (value !== "") parameters.append(`v.${name}`, value);
  for (const panel of only) parameters.append("panel", panel.id);
  return parameters;
}

export const boards = () => call("api/boards");
export const board = (name, span, chosen = {}, only = []) => call(`api/boards/${name}?${query(span, chosen, only)}`);
export const options = (name) => call(`api/boards/${name}/options`);
export const sql = (text) => call("api/sql", {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ sql: text }),
});

// Rows as objects: a result is columns with types, then rows as arrays.
export function rows(result) {
  if (!result || !result.data) return [];
  const names = result.meta.map((column) => column.name);
  return result.data.map((row) => Object.fromEntries(row.map((value, i) => [names[i], value])));
}
