// Time series, drawn by uPlot: lines or stacked areas, bands, thresholds, and marks of what happened.

import { colour, el } from "./dom.js";
import { number, tick, words } from "./format.js";

const SERIES = 10;
const NUMERIC = /^(Nullable\()?(U?Int|Float|Decimal)/;

// A text column tells series apart; without one, every other column is a series.
function columns(result) {
  const text = result.meta.findIndex((column, i) => i > 0 && /String/.test(column.type));
  const values = result.meta.map((column, i) => i).filter((i) => i > 0 && i !== text && (NUMERIC.test(result.meta[i].type) || text < 0));
  const series = new Map();
  for (const row of result.data) {
    for (const i of values) {
      const name = text < 0 ? result.meta[i].name : row[text];
      if (!series.has(name)) series.set(name, new Map());
      series.get(name).set(Number(row[0]), row[i]);
    }
  }
  const times = [...new Set(result.data.map((row) => Number(row[0])))].sort((a, b) => a - b);
  return { times, series };
}

function dashed(panel, name) {
  return panel.dashed.includes(name) || name.endsWith(" · baseline");
}

function prepare(panel, result, span) {
  const { times, series } = columns(result);
  // What is not over yet would look like a fall.
  if (times.length > 2 && times.at(-1) + span.step_s > span.end_s) times.pop();
  const names = [...series.keys()].filter((name) => [...series.get(name).values()].some((v) => v !== null));
  names.sort((a, b) => (a === "all others") - (b === "all others"));
  const exact = names.map((name) => times.map((t) => series.get(name).get(t) ?? (panel.stacked ? 0 : null)));
  let drawn = exact;
  if (panel.stacked) {
    const sum = times.map(() => 0);
    drawn = exact.map((line) => line.map((value, i) => (sum[i] += value)));
  }
  return { times, names, exact, drawn };
}

function paints(names) {
  const base = names.map((name) => name.replace(/ · baseline$/, ""));
  const order = [...new Set(base)];
  return base.map((name) => (name === "all others" ? "s10" : `s${order.indexOf(name) % SERIES}`));
}

function marking(marks) {
  return {
    hooks: {
      drawClear: [(u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.beginPath();
        ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
        ctx.clip();
        for (const mark of marks()) {
          const from = u.valToPos(Number(mark.time), "x", true);
          const to = u.valToPos(Number(mark.timeEnd), "x", true);
          ctx.fillStyle = colour("bad");
          ctx.globalAlpha = 0.04;
          if (to > from) ctx.fillRect(from, bbox.top, to - from, bbox.height);
          ctx.globalAlpha = 0.55;
          ctx.fillRect(from, bbox.top, devicePixelRatio, bbox.height);
        }
        ctx.restore();
      }],
    },
  };
}

function limits(panel) {
  return {
    hooks: {
      draw: [(u) => {
        const { ctx, bbox } = u;
        for (const threshold of panel.thresholds) {
          const y = u.valToPos(threshold.value, "y", true);
          if (y < bbox.top || y > bbox.top + bbox.height) continue;
          ctx.save();
          ctx.strokeStyle = colour(threshold.colour === "red" ? "bad" : "warn");
          ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
          ctx.lineWidth = devicePixelRatio;
          ctx.beginPath();
          ctx.moveTo(bbox.left, y);
          ctx.lineTo(bbox.left + bbox.width, y);
          ctx.stroke();
          ctx.restore();
        }
      }],
    },
  };
}

export class Chart {
  constructor(panel, height = 190) {
    this.panel = panel;
    this.height = height;
    this.plotted = el("div", { class: "plot", role: "img", "aria-label": panel.title });
    this.legend = el("ul", { class: "legend" });
    this.element = el("div", {}, this.plotted, this.legend);
    this.marks = [];
    new ResizeObserver(() => this.resize()).observe(this.plotted);
  }

  resize() {
    const width = Math.floor(this.plotted.clientWidth);
    if (this.u && width && this.u.width !== width) this.u.setSize({ width, height: this.height });
  }

  update(result, span, marks) {
    this.marks = marks;
    this.span = span;
    this.data = prepare(this.panel, result, span);
    const key = JSON.stringify([this.data.names, matchMedia("(prefers-color-scheme: dark)").matches]);
    if (!this.u || key !== this.key) this.build();
    this.key = key;
    this.u.setData([this.data.times, ...this.data.drawn], true);
    this.describe(null);
  }

  build() {
    this.u?.destroy();
    this.colours = paints(this.data.names).map(colour);
    const axis = {
      stroke: colour("faint"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false },
      font: "11.5px system-ui, sans-serif", labelFont: "11.5px system-ui, sans-serif",
    };
    const peak = () => Math.max(...this.panel.thresholds.map((t) => t.value), 0);
    this.u = new uPlot({
      width: Math.max(200, this.plotted.clientWidth), height: this.height, legend: { show: false },
      cursor: { y: false, points: { size: 6 }, sync: { key: "kizashi" }, drag: { x: false, y: false } },
      padding: [10, 8, 0, 0],
      scales: {
        x: { time: true, range: () => [this.span.start_s, this.span.end_s] },
        y: { range: (u, min, max) => {
          const limit = this.limit();
          // A line that is held against a limit matters where it crosses, not how far it goes.
          const high = limit ? Math.min(Math.max(max ?? 0, limit * 1.5), limit * 4) : Math.max(max ?? 0, peak() <= (max ?? 0) * 3 ? peak() : 0);
          return [Math.min(0, min ?? 0), high > 0 ? high * 1.08 : 1];
        } },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 64, size: 28, values: (u, ticks) => ticks.map((t) => tick(t, this.span.end_s - this.span.start_s)) },
        { ...axis, size: 58, space: 34, gap: 6, values: (u, ticks) => ticks.map((t) => number(t, this.panel.unit).replace(" /min", "")) },
      ],
      series: [{}, ...this.data.names.map((name, i) => this.line(name, i))],
      bands: this.bands(),
      plugins: [marking(() => this.marks), limits(this.panel)],
      hooks: { setCursor: [(u) => this.describe(u.cursor.idx)] },
    }, [[], ...this.data.names.map(() => [])], this.plotted);
  }

  limit() {
    const { panel, data } = this;
    const held = panel.dashed.flatMap((name) => data.exact[data.names.indexOf(name)] ?? []);
    return Math.max(0, ...held.filter((value) => value !== null), ...(panel.unit === "none" ? panel.thresholds.map((t) => t.value) : []));
  }

  line(name, i) {
    const { panel } = this;
    const border = panel.band?.includes(name);
    const paint = this.colours[i];
    return {
      label: name, stroke: border ? colour("s8") + "66" : panel.dashed.includes(name) ? colour("bad") : paint,
      width: dashed(panel, name) ? 1.3 : panel.stacked ? 1 : 1.7, dash: dashed(panel, name) ? [5, 4] : undefined,
      fill: panel.stacked ? paint + "55" : undefined, points: { show: this.data.times.length === 1 },
      spanGaps: true,
    };
  }

  bands() {
    const { panel, data } = this;
    if (panel.stacked) return data.names.slice(1).map((_, i) => ({ series: [i + 2, i + 1], fill: this.colours[i + 1] + "55" }));
    if (!panel.band) return [];
    const [low, high] = panel.band.map((name) => data.names.indexOf(name) + 1);
    return low && high ? [{ series: [high, low], fill: colour("s8") + "38" }] : [];
  }

  // The legend tells the values under the cursor, or the latest.
  describe(index) {
    const { panel, data } = this;
    const items = [];
    data.names.forEach((name, i) => {
      if (panel.band?.includes(name) || name.endsWith(" · baseline")) return;
      const line = data.exact[i];
      const at = index ?? line.findLastIndex((v) => v !== null);
      const value = line[at];
      const mark = el("i", { class: dashed(panel, name) ? "dash" : "", colour: panel.dashed.includes(name) ? colour("bad") : this.colours[i] });
      items.push(el("li", {}, mark, el("span", { title: name }, /^[a-z_]+$/.test(name) ? words(name) : name), el("b", {}, number(value ?? null, panel.unit))));
    });
    if (panel.band && data.names.includes(panel.band[0])) {
      const [low, high] = panel.band.map((name) => data.exact[data.names.indexOf(name)]?.[index ?? data.times.length - 1]);
      const text = low == null ? "" : `${number(low, panel.unit)} – ${number(high ?? null, panel.unit)}`;
      items.push(el("li", {}, el("i", { class: "area", colour: colour("s8") }), el("span", {}, "Baseline"), el("b", {}, text)));
    }
    this.legend.replaceChildren(...items);
  }
}
