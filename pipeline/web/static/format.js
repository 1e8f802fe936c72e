// Numbers, times and names as a person reads them. Units are Grafana's ids, as the panels have them.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dated = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

function significant(value, digits = 3) {
  return new Intl.NumberFormat("en", { maximumSignificantDigits: digits }).format(value);
}

export function duration(seconds) {
  const s = Math.abs(seconds);
  if (s < 1) return `${significant(seconds * 1000)} ms`;
  if (s < 120) return `${significant(seconds)} s`;
  if (s < 7200) return `${Math.round(seconds / 60)} min`;
  if (s < 172800) return `${significant(seconds / 3600, 2)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function share(value) {
  const percent = Math.abs(value) < 0.00005 ? 0 : value * 100;
  return `${Math.abs(percent) >= 10 || percent === 0 ? percent.toFixed(0) : significant(percent, 2)}\u202f%`;
}

export function number(value, unit = "none") {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  switch (unit) {
    case "percentunit": return share(value);
    case "ms": return duration(value / 1000);
    case "s": return duration(value);
    case "cpm": return `${Math.abs(value) >= 10000 ? compact.format(value) : significant(value)} /min`;
    case "currencyUSD": return `$${Math.abs(value) >= 1000 ? compact.format(value) : Math.abs(value) >= 0.1 || value === 0 ? value.toFixed(2) : significant(value, 2)}`;
    case "short": return Math.abs(value) >= 10000 ? compact.format(value) : plain.format(value);
    default:
      if (Math.abs(value) >= 1e12) return value.toExponential(1).replace("e+", " × 10^");
      if (Math.abs(value) >= 1e6) return compact.format(value);
      return value !== 0 && Math.abs(value) < 0.01 ? significant(value, 2) : plain.format(value);
  }
}

// ClickHouse hands times over as seconds since the epoch, in a string.
export function time(seconds) {
  const at = new Date(Number(seconds) * 1000);
  return Date.now() - at < 72000000 && Date.now() - at > -72000000 ? clock.format(at) : dated.format(at);
}

const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

// A label of the time axis, for a range of so many seconds.
export function tick(seconds, range) {
  const at = new Date(seconds * 1000);
  return range > 172800 || (at.getHours() === 0 && at.getMinutes() === 0) ? day.format(at) : minute.format(at);
}

export function words(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
