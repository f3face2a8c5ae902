// Charts as SVG: a budget being used up, and calls by the quarter of an hour.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 260;
const EDGE = { top: 18, right: 14, bottom: 24, left: 12 };

function make(name, attributes = {}, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function frame(width, height, said) {
  return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
}

const path = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// Round instants between two, about as many as there is room for.
function instants(from, to, most) {
  const steps = [5, 15, 30, 60, 180, 360, 720, 1440, 2880, 10080, 43200].map((m) => m * 60000);
  const step = steps.find((each) => (to - from) / each <= most) ?? steps.at(-1);
  const zero = new Date(from);
  zero.setHours(0, 0, 0, 0);
  const found = [];
  for (let at = zero.getTime(); at <= to; at += step) if (at >= from) found.push(at);
  return { found, step };
}

export function when(ms, step = 0) {
  const at = new Date(ms);
  const day = at.toLocaleDateString(undefined, { day: "numeric", month: "short" });
  const time = at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  if (step >= 86400000) return day;
  return step || at.toDateString() === new Date().toDateString() ? time : `${day} ${time}`;
}

// What was spent (line), what is reserved on top of it (band), the limit, where it leads.
export function burnChart(burn, now, write, width) {
  const svg = frame(width, HEIGHT, burn.said);
  const inner = { w: width - EDGE.left - EDGE.right, h: HEIGHT - EDGE.top - EDGE.bottom };
  const ends = [burn.limit ?? 0, burn.posted + burn.reserved, ...burn.spent.map((p) => p[1])];
  const top = Math.max(...ends, 1) * 1.12;
  const x = (ms) => EDGE.left + (inner.w * (ms - burn.from_ms)) / Math.max(1, burn.to_ms - burn.from_ms);
  const y = (amount) => EDGE.top + inner.h * (1 - Math.min(amount, top) / top);
  const base = y(0);

  const { found, step } = instants(burn.from_ms, burn.to_ms, Math.max(2, Math.floor(width / 90)));
  svg.append(make("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: base, y2: base }));
  for (const at of found) {
    svg.append(make("line", { class: "axis", x1: x(at), x2: x(at), y1: base, y2: base + 4 }));
    const end = x(at) > width - 50 ? "end" : x(at) < 40 ? "start" : "middle";
    svg.append(make("text", { x: x(at), y: HEIGHT - 4, "text-anchor": end }, when(at, step)));
  }
  const spent = burn.spent.map(([ms, amount]) => [x(ms), y(amount)]);
  const last = spent.at(-1);
  svg.append(make("path", { class: "spent-area", d: `${path(spent)}L${last[0]} ${base}L${spent[0][0]} ${base}Z` }));
  if (burn.reserved > 0) {
    const from = Math.max(EDGE.left, last[0] - 7);
    const high = y(burn.posted + burn.reserved);
    svg.append(make("rect", { class: "held", x: from, y: high, width: 14, height: Math.max(1, last[1] - high) }));
  }
  if (burn.allowed.length) {
    svg.append(make("path", { class: "pace", d: path(burn.allowed.map(([ms, amount]) => [x(ms), y(amount)])) }));
  }
  svg.append(make("path", { class: "spent", d: path(spent) }));
  svg.append(make("line", { class: "now", x1: x(now), x2: x(now), y1: EDGE.top, y2: base }));
  if (burn.limit !== null) {
    svg.append(make("line", { class: "limit", x1: EDGE.left, x2: width - EDGE.right, y1: y(burn.limit), y2: y(burn.limit) }));
    svg.append(make("text", { class: "on-limit", x: EDGE.left + 4, y: y(burn.limit) - 5 }, `limit ${write(burn.limit)}`));
  }
  if (burn.per_hour > 0 && (burn.used_up_at_ms !== null || burn.at_end !== null)) {
    const meets = burn.used_up_at_ms !== null;
    const until = Math.min(meets ? burn.used_up_at_ms : burn.to_ms, burn.to_ms);
    const from = meets ? burn.counted : burn.posted; // used up is what is reserved, too
    const amount = from + (burn.per_hour * (until - now)) / 3600000;
    svg.append(make("path", { class: "ahead", d: path([[last[0], y(from)], [x(until), y(amount)]]) }));
    if (meets && burn.used_up_at_ms <= burn.to_ms) {
      svg.append(make("circle", { class: "hits", cx: x(until), cy: y(burn.limit), r: 5 }));
    }
  }
  return svg;
}

export function barChart(rows, said, width) {
  const height = 90;
  const svg = frame(width, height, said);
  if (!rows.length) return svg;
  const quarter = 900000;
  const to = rows.at(-1)[0] + quarter;
  const from = Math.min(rows[0][0], to - 24 * quarter);
  const most = Math.max(...rows.map((row) => row[1]));
  const wide = width / ((to - from) / quarter);
  for (const [at, calls] of rows) {
    const high = Math.max(1, (70 * calls) / most);
    svg.append(make("rect", {
      class: "bar-of", x: ((at - from) / quarter) * wide + 0.5, y: 72 - high, width: Math.max(1, wide - 1), height: high,
    }, make("title", {}, `${when(at)}: ${calls.toLocaleString()} calls`)));
  }
  const { found, step } = instants(from, to, Math.max(2, Math.floor(width / 90)));
  for (const at of found) {
    const place = ((at - from) / quarter) * wide;
    const end = place > width - 50 ? "end" : place < 30 ? "start" : "middle";
    svg.append(make("text", { x: place, y: height - 4, "text-anchor": end }, when(at, step)));
  }
  return svg;
}

export function share(posted, reserved, limit) {
  const svg = make("svg", { class: "of", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
  const part = (amount) => Math.max(0, Math.min(100, (100 * amount) / Math.max(1, limit)));
  svg.append(make("rect", { class: "held", x: 0, y: 0, width: part(posted + reserved), height: 4 }));
  svg.append(make("rect", { class: "bar-of", x: 0, y: 0, width: part(posted), height: 4 }));
  return svg;
}
