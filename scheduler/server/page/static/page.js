// Draws what the scheduler tells. Text is always set as text: names that come from files cannot become markup.

import { barChart, burnChart, share, when } from "./chart.js";

const $ = (id) => document.getElementById(id);
const AGAIN_MS = 2000;
const state = { picture: null, burn: null, budget: null, cap: 0, after: 0, next: null, asking: null, requests: null, tag: null };

// Making things

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function table(into, caption, columns, rows, empty) {
  if (!rows.length) {
    into.replaceChildren(...(empty ? [el("p", { class: "none" }, empty)] : []));
    return;
  }
  const focused = into.contains(document.activeElement) ? document.activeElement.dataset.act : null;
  const at = into.firstChild?.scrollLeft ?? 0;
  const head = columns.map(([name, kind]) => el("th", { scope: "col", class: kind === "right" ? "right" : null }, name));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell, n) =>
    el("td", { class: columns[n][1] ?? null }, ...(Array.isArray(cell) ? cell : [cell ?? "–"])))));
  const made = el("table", {},
    el("caption", { class: "visually-hidden" }, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  // What is wider than the page scrolls by itself, with the keyboard, too.
  into.replaceChildren(el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${caption}: table` }, made));
  into.firstChild.scrollLeft = at;
  if (focused) into.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
}

const count = (number) => number.toLocaleString();
const percent = (part) => (part === null ? null : `${Math.round(100 * part)} %`);

function span(ms) {
  if (ms === null || ms === undefined) return null;
  const s = Math.round(ms / 1000);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (s < 60) return ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h${Math.floor((s % 3600) / 60) ? ` ${Math.floor((s % 3600) / 60)} min` : ""}`;
  return `${Math.floor(s / 86400)} d${Math.floor((s % 86400) / 3600) ? ` ${Math.floor((s % 86400) / 3600)} h` : ""}`;
}

const age = (ms) => (ms ? span(Math.max(0, state.picture.at_ms - ms)) : null);
const inTime = (ms) => (ms ? `${when(ms)} (in ${span(Math.max(0, ms - state.picture.at_ms))})` : null);

function amountWriter(unit) {
  if (unit !== "usd") return (value) => `${count(Math.round(value))} ${unit}`;
  return (value) => {
    const dollars = value / 1e9;
    const digits = dollars !== 0 && Math.abs(dollars) < 0.1 ? 6 : 2;
    return `$${dollars.toLocaleString(undefined, { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
  };
}

// Asking the server

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; nothing is known of what was asked");
  }
  const text = await answer.text();
  let value;
  try { value = JSON.parse(text); } catch { value = { said: text.trim() }; }
  if (!answer.ok) throw new Error(value.said || `HTTP ${answer.status}`);
  return value;
}

// Of questions of one kind only the last counts, whichever answer comes last; undefined: another was asked since.
const asked = {};
async function askLast(kind, path) {
  const mine = asked[kind] = {};
  const value = path === null ? null : await ask(path);
  return asked[kind] === mine ? value : undefined;
}

function trouble(said) {
  if ($("trouble").textContent === (said ?? "")) return; // nor is it read aloud again
  $("trouble").textContent = said ?? "";
  $("trouble").hidden = !said;
}

async function attempt(job) {
  try { await job(); return true; } catch (error) { trouble(error.message); return false; }
}

// One dialog asks for whatever is to be changed

function askFor({ title, text, label, value, action, done }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-label").textContent = label ?? "";
  $("ask-label").hidden = $("ask-input").hidden = label === undefined;
  $("ask-input").value = value ?? "";
  $("ask-do").textContent = action;
  $("ask-trouble").hidden = true;
  state.asking = done;
  $("ask").showModal();
  (label === undefined ? $("ask-do") : $("ask-input")).focus();
  if (label !== undefined) $("ask-input").select();
}

$("ask").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("ask-do").disabled = true;
  try {
    await state.asking($("ask-input").value.trim());
    $("ask").close();
    attempt(refresh);
  } catch (error) {
    $("ask-trouble").textContent = error.message;
    $("ask-trouble").hidden = false;
  } finally {
    $("ask-do").disabled = false;
  }
});
$("ask-cancel").addEventListener("click", () => $("ask").close());
$("life-close").addEventListener("click", () => $("life").close());

function raise(budget) {
  askFor({
    title: `Limit of ${budget.name}`,
    text: `Now ${budget.text}. What is parked and fits goes on at once; a lower limit cancels nothing.`,
    label: "New limit", value: budget.text, action: "Set the limit",
    done: (limit) => ask(`api/budgets/${budget.id}`, { limit }),
  });
}

function pause(budget) {
  if (budget.paused) return attempt(async () => { await ask(`api/budgets/${budget.id}`, { paused: false }); await refresh(); });
  askFor({
    title: `Pause ${budget.name}?`, text: "Nothing more starts on it until it is resumed; what runs goes on.",
    action: "Pause it", done: () => ask(`api/budgets/${budget.id}`, { paused: true }),
  });
}

function resolve(unknown) {
  askFor({
    title: `What did attempt ${unknown.attempt} cost?`,
    text: `Nobody heard how it ended, so its ceiling of ${unknown.ceiling} keeps counting. Empty: nothing, it was never billed.`,
    label: "What it cost, such as $0.01", value: unknown.ceiling, action: "Note it",
    done: (charge) => ask(`api/unknown/${unknown.attempt}`, { charge: charge || null }),
  });
}

const buttons = (budget, where) => state.picture.may_change ? [
  el("button", { type: "button", "data-act": `${where}limit${budget.id}`, "aria-label": `Change the limit of ${budget.name}`, onclick: () => raise(budget) }, "Change limit"),
  " ",
  el("button", { type: "button", "data-act": `${where}pause${budget.id}`, "aria-label": `${budget.paused ? "Resume" : "Pause"} ${budget.name}`, onclick: () => pause(budget) }, budget.paused ? "Resume" : "Pause"),
] : [];

// Drawing

function chosen() {
  return state.picture.budgets.find((each) => each.id === state.budget);
}

function drawChoice() {
  const { budgets, more_budgets: more } = state.picture;
  const options = budgets.flatMap((budget) => budget.caps.map((cap, n) => ({
    value: `${budget.id}/${n}`, said: `${budget.name}: ${cap.cap}${budget.paused ? " (paused)" : ""}`,
  })));
  const value = `${state.budget}/${state.cap}`;
  const select = $("budget-choice");
  const known = [...select.options].map((each) => `${each.value} ${each.text}`).join("\n");
  if (known !== options.map((each) => `${each.value} ${each.said}`).join("\n")) {
    select.replaceChildren(...options.map((each) => el("option", { value: each.value }, each.said)));
  }
  if (!options.some((each) => each.value === value)) {
    [state.budget, state.cap] = options.length ? options[0].value.split("/").map(Number) : [null, 0];
  }
  select.value = `${state.budget}/${state.cap}`;
  select.hidden = !options.length;
  $("no-budget").hidden = options.length > 0;
  if (more > 0) select.title = `${count(more)} more budgets are not shown: these have least left`;
}

function tile(name, value, more, kind) {
  return el("div", {}, el("dt", {}, name), el("dd", { class: kind ?? null }, value, more ? el("small", {}, more) : null));
}

function drawTiles() {
  const budget = chosen();
  if (!budget) { $("tiles").replaceChildren(); $("budget-actions").replaceChildren(); return; }
  const cap = budget.caps[state.cap];
  const { said } = cap;
  const short = cap.available !== null && cap.available <= 0;
  const burn = state.burn;
  let ends = ["–", "nothing was spent lately"];
  if (burn?.used_up_at_ms && burn.used_up_at_ms <= burn.spent.at(-1)[0]) ends = ["now", "nothing is left"];
  else if (burn?.used_up_at_ms) ends = [when(burn.used_up_at_ms), `in ${span(Math.max(0, burn.used_up_at_ms - state.picture.at_ms))}, at this rate`];
  else if (burn?.said_at_end && burn.per_hour > 0) ends = ["not before the reset", `${burn.said_at_end} by then, at this rate`];
  else if (burn && burn.per_hour > 0) ends = ["–", cap.limit === null ? "there is no limit" : "it gives back what it took"];
  $("tiles").replaceChildren(
    tile("Spent", said.posted, cap.limit === null ? "no limit" : `of ${said.limit} ${cap.window}`),
    tile("Reserved", said.reserved, cap.suspense ? `${said.suspense} of it unknown` : "for calls under way"),
    tile("Left", said.available ?? "no limit", cap.allowed === null ? null : `${said.allowed} allowed by now`, short ? "bad" : null),
    tile("Rate", `${said.per_hour}/h`, "as it went lately"),
    tile("Used up", ends[0], ends[1], burn?.used_up_at_ms ? "warn" : null),
    tile("Next reset", cap.resets_at_ms ? when(cap.resets_at_ms) : "never",
      cap.resets_at_ms ? `in ${span(Math.max(0, cap.resets_at_ms - state.picture.at_ms))}` : "only a raise helps"),
    doneTile(),
  );
  const acts = buttons(budget, "top");
  if (!$("budget-actions").contains(document.activeElement)) $("budget-actions").replaceChildren(...acts);
}

// When all that waits will be done: early, likely and late instants; null where only a raise helps

function waiting() {
  const { counts } = state.picture;
  return counts.queued + counts.parked;
}

function doneBand({ early_ms: early, likely_ms: likely, late_ms: late }) {
  const now = state.picture.at_ms;
  if (likely === null) return null;
  if (late !== null && late - now < 120000) return `in about ${span(Math.max(1000, likely - now))}`;
  if (late === null) return "maybe not without a raise";
  return `${early === null ? "now" : when(early)} to ${when(late)}`;
}

function doneTile() {
  const { finish } = state.picture;
  if (!waiting()) return tile("All done", "–", "nothing waits");
  if (!finish) return tile("All done", "…", "being worked out");
  if (finish.likely_ms === null) return tile("All done", "never", "not without a raise", "bad");
  return tile("All done", when(finish.likely_ms), doneBand(finish));
}

function drawFinish() {
  const { finish } = state.picture;
  $("finish").hidden = !waiting();
  if (!waiting()) return;
  const basis = finish?.calls ? `judged by ${count(finish.calls)} calls` : "a guess, at 5 s a call: no call like these is known";
  $("finish").textContent = !finish ? "When all that waits will be done is being worked out…"
    : finish.likely_ms === null ? "What waits will not be done without a raise."
    : `All that waits will be done about ${when(finish.likely_ms)} (${doneBand(finish)}); ${basis}.`;
}

function drawBurn() {
  const burn = state.burn;
  $("burn").hidden = !burn;
  if (!burn) return;
  const width = Math.max(320, Math.round($("burn-chart").clientWidth || 900));
  $("burn-chart").replaceChildren(burnChart(burn, state.picture.at_ms, amountWriter(burn.unit), width));
  const line = (color, text, dashed) => el("li", {}, swatch(color, dashed), text);
  const items = [line("blue", "spent"), burn.reserved > 0 ? line("held", "reserved for calls under way") : null,
    burn.limit !== null ? line("red", "limit", true) : null, burn.allowed.length ? line("pace", "allowed by its pace", true) : null,
    burn.per_hour > 0 ? line("blue", "as it went lately", true) : null];
  $("burn-caption").replaceChildren(el("ul", { class: "legend" }, ...items.filter(Boolean)), el("span", {}, `${burn.said}.`));
}

function swatch(color, dashed) {
  const mark = el("i", { "aria-hidden": "true" });
  mark.style.borderTopColor = `var(--${color})`;
  if (dashed) mark.style.borderTopStyle = "dashed";
  return mark;
}

function drawQueue() {
  const { counts, standing, limited } = state.picture;
  const words = { running: "running", queued: "queued", parked: "parked", succeeded: "done", failed: "failed", cancelled: "cancelled", expired: "expired" };
  $("counts").replaceChildren(...Object.entries(words)
    .filter(([name]) => counts[name] || !["cancelled", "expired"].includes(name))
    .map(([name, word]) => el("li", { class: name === "failed" && counts[name] ? "bad" : name === "parked" && counts[name] ? "warn" : null },
      el("b", {}, count(counts[name])), ` ${word}`)));
  table($("standing"), "What waits or runs, and why",
    [["state"], ["priority"], ["requests", "right"], ["oldest", "right"], ["why", "wide"], ["goes on", "wide"]],
    standing.map((row) => [row.state + (row.reason && row.state !== "parked" ? ` (${row.reason})` : ""), row.priority, count(row.requests),
      age(row.oldest_at_ms), row.why ?? "", row.state === "parked" ? inTime(row.resumes_at_ms) ?? needs(row) : ""]),
    "Nothing waits and nothing runs.");
  $("limited").replaceChildren(...limited.map((each) => el("li", {}, each.said + (each.until_ms ? `; goes on ${inTime(each.until_ms)}` : ""))));
}

function needs(row) {
  if (row.reason === "held in flight") return "when calls under way end";
  return row.reason === "paused" ? "when it is resumed" : "after a raise";
}

function drawBudgets() {
  const rows = state.picture.budgets.flatMap((budget) => budget.caps.map((cap, n) => [
    [el("button", { type: "button", class: "link", "data-act": `show${budget.id}/${n}`, onclick: () => choose(budget.id, n) }, budget.name), budget.paused ? " (paused)" : ""],
    cap.said.limit === null ? "none" : `${cap.said.limit} ${cap.window}`,
    [cap.said.posted, cap.limit ? share(cap.posted, cap.reserved, cap.limit) : null],
    cap.said.reserved, cap.said.available, `${cap.said.per_hour}/h`, inTime(cap.resets_at_ms) ?? "never",
    n === 0 ? buttons(budget, "row") : "",
  ]));
  table($("budgets"), "Budgets", [["budget", "name"], ["limit"], ["spent"], ["reserved", "right"], ["left", "right"], ["rate", "right"], ["resets"],
    [state.picture.may_change ? "change" : ""]], rows, "There is none.");
}

function drawModels() {
  const { models, spend, throughput } = state.picture;
  table($("models"), "Models in the last 24 hours",
    [["model", "name"], ["calls", "right"], ["spent", "right"], ["median", "right"], ["95 %", "right"], ["99 %", "right"], ["of ceiling", "right"]],
    models.map((row) => [row.model, count(row.calls), row.said, span(row.p50_ms), span(row.p95_ms), span(row.p99_ms), percent(row.of_ceiling)]),
    "No call was answered.");
  table($("jobs"), "Spend by job in the last 24 hours",
    [["job", "name"], ["attempts", "right"], ["spent", "right"], ["reserved", "right"], ["tokens", "right"]],
    spend.job.map((row) => [row.name || "(none)", count(row.attempts), row.said.posted, row.said.reserved, count(row.tokens)]), "Nothing was spent.");
  const calls = throughput.reduce((sum, row) => sum + row[1], 0);
  const said = `${count(calls)} calls were answered in the last 24 hours`;
  $("throughput").replaceChildren(...(calls ? [barChart(throughput, said, Math.max(320, Math.round($("throughput").clientWidth || 900)))] : []));
  $("throughput-caption").textContent = `${said}${calls ? ", by the quarter of an hour" : ""}.`;
}

function drawTags() {
  const { tags } = state.picture;
  $("tags-section").hidden = !tags.length;
  if (!tags.length) return;
  const select = $("tag-choice");
  const names = tags.map((each) => each.tag).sort();
  if ([...select.options].map((each) => each.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((name) => el("option", { value: name }, name || "(no name)")));
  }
  const chosen = tags.find((each) => each.tag === state.tag) ?? tags[0];
  state.tag = select.value = chosen.tag;
  table($("tags"), `Spend by ${chosen.tag} in the last 24 hours`,
    [[chosen.tag, "name"], ["attempts", "right"], ["spent", "right"], ["reserved", "right"], ["tokens", "right"]],
    chosen.values.map((row) => [row.name || "(empty)", count(row.attempts), row.said.posted, row.said.reserved, count(row.tokens)]));
  $("tags-more").hidden = !chosen.more;
  $("tags-more").textContent = `${count(chosen.more)} more are not shown: scheduler spend --by tag:${chosen.tag}`;
}

function drawTenants() {
  const { tenants } = state.picture;
  $("tenants-section").hidden = !tenants.length;
  table($("tenants"), "Who shares with whom: what each was served in this hour and the one before",
    [["tenant", "name"], ["waiting", "right"], ["served", "right"], ["share", "right"], ["weight", "right"]],
    tenants.map((row) => [row.tenant || "(no tag)", count(row.waiting), row.served, percent(row.share), String(row.weight)]));
}

function drawWorkers() {
  const rows = state.picture.workers;
  $("workers-section").hidden = !rows.length;
  table($("workers"), "Workers", [["host", "name"], ["process", "right"], ["running", "right"], ["serves", "name"], ["last seen"]],
    rows.map((row) => [row.host, String(row.pid), count(row.running), row.serves.join(", "), row.is_live ? "now" : `${age(row.seen_at_ms)} ago, taken for lost`]));
}

async function drawUnknown() {
  const { attempts, said, oldest_at_ms: oldest } = state.picture.unknown;
  $("unknown-section").hidden = !attempts;
  if (!attempts) return;
  $("unknown-sum").textContent = `${count(attempts)} calls were sent of which nobody heard how they ended. ${said} keeps counting, the oldest since ${age(oldest)}.`;
  const answer = await askLast("unknown", "api/unknown");
  if (answer) table($("unknown"), "Unknown outcomes",
    [["attempt", "right"], ["key", "name"], ["model", "name"], ["counts", "right"], ["age", "right"], ["why", "wide"], [state.picture.may_change ? "change" : ""]],
    answer.unknown.map((row) => [String(row.attempt), row.key, row.model, row.ceiling, age(row.sent_at_ms), row.why ?? "",
      state.picture.may_change ? [el("button", { type: "button", "data-act": `resolve${row.attempt}`, "aria-label": `Resolve attempt ${row.attempt}`, onclick: () => resolve(row) }, "Resolve")] : ""]));
}

async function drawActs() {
  const answer = await askLast("acts", "api/acts");
  if (!answer) return;
  const { acts } = answer;
  $("acts-section").hidden = !acts.length;
  const words = { limit: "limit of", pause: "paused", resume: "resumed", remove: "removed", charge: "charged attempt", void: "voided attempt" };
  table($("acts"), "Who changed what", [["when"], ["who", "name"], ["what", "name"], ["from", "name"], ["to", "name"]],
    acts.map((row) => [when(row.at_ms), row.who, `${words[row.what] ?? row.what} ${row.name}`, row.before, row.after]));
}

async function drawRequests() {
  const answer = await askLast("requests", `api/requests?state=${$("state-choice").value}&after=${state.after}`);
  if (!answer) return;
  const { requests, after_id: next } = answer;
  state.next = next;
  $("next-page").disabled = next === null;
  $("first-page").disabled = state.after === 0;
  const told = JSON.stringify(requests);
  if (told === state.requests) return;
  state.requests = told;
  table($("requests"), "Requests", [["request", "name"], ["state"], ["model", "name"], ["job", "name"], ["submitted"], ["tries", "right"], ["cost", "right"], ["why", "wide"]],
    requests.map((row) => [
      [el("button", { type: "button", class: "link", "data-act": `life${row.id}`, onclick: () => attempt(() => showLife(row.id)) }, row.key ?? `#${row.id}`)],
      row.state, row.model, row.job || "–", when(row.submitted_at_ms), String(row.attempts), row.cost ?? `≤ ${row.ceiling}`, row.error ?? row.why ?? ""]),
    "There is none.");
}

async function showLife(id) {
  const row = await ask(`api/requests/${id}`);
  $("life-title").textContent = `Request ${row.key ?? `#${row.id}`}`;
  const facts = [["state", row.state], ["why", row.why], ["goes on", inTime(row.resumes_at_ms)], ["error", row.error], ["model", `${row.model} at ${row.provider}`],
    ["job", row.job], ["priority", row.priority], ["submitted", new Date(row.submitted_at_ms).toLocaleString()], ["parked for", row.parked_ms ? span(row.parked_ms) : null],
    ["may cost", row.ceiling], ["cost", row.cost]];
  $("life-facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  table($("life-tries"), "Attempts", [["attempt", "right"], ["began"], ["took", "right"], ["reserved", "right"], ["outcome"], ["cost", "right"], ["why", "wide"]],
    row.tries.map((each) => [String(each.id), new Date(each.made_at_ms).toLocaleTimeString(), each.settled_at_ms ? span(each.settled_at_ms - each.made_at_ms) : "running",
      each.ceiling, each.state + (each.is_assumed ? " (assumed)" : ""), each.cost, each.why ?? ""]), "It was not sent yet.");
  $("life").showModal();
}

// Keeping up

async function choose(budget, cap) {
  [state.budget, state.cap, state.burn] = [budget, cap, null];
  $("budget-choice").value = `${budget}/${cap}`;
  await attempt(drawMore);
  $("budget-heading").scrollIntoView({ block: "nearest" });
}

async function drawMore() {
  const burn = await askLast("burn", state.budget === null ? null : `api/burn/${state.budget}/${state.cap}`);
  if (burn !== undefined) {
    state.burn = burn;
    drawTiles();
    drawBurn();
  }
  await Promise.all([drawUnknown(), drawActs(), drawRequests()]);
}

// What came while the rest was being asked for is asked for again: there may be no other news for hours.
let isBehind = false, isDrawing = false;
async function keepUp() {
  isBehind = true;
  if (isDrawing) return;
  isDrawing = true;
  for (let failed = false; isBehind;) {
    isBehind = false;
    if (await attempt(drawMore)) {
      if (failed) trouble(null);
      failed = false;
    } else {
      failed = isBehind = true;
      await new Promise((wake) => setTimeout(wake, AGAIN_MS));
    }
  }
  isDrawing = false;
}

function draw(picture) {
  state.picture = picture;
  $("store").textContent = picture.store + (picture.may_change ? "" : " · read-only");
  drawChoice();
  drawTiles();
  drawQueue();
  drawFinish();
  drawBudgets();
  drawTenants();
  drawModels();
  drawTags();
  drawWorkers();
  document.title = `${picture.counts.parked ? `${count(picture.counts.parked)} parked · ` : ""}scheduler`;
}

async function refresh() {
  const picture = await ask("api/picture");
  if (picture.at_ms >= (state.picture?.at_ms ?? 0)) draw(picture);
  await drawMore();
}

function live(kind, text) {
  $("live").className = kind;
  $("live-text").textContent = text;
}

function follow() {
  const source = new EventSource("events");
  source.addEventListener("picture", (event) => {
    live("is-live", "live");
    trouble(null);
    draw(JSON.parse(event.data));
    keepUp();
  });
  source.addEventListener("trouble", (event) => trouble(JSON.parse(event.data).said));
  source.onerror = () => live("is-lost", "not connected, trying again");
}

$("budget-choice").addEventListener("change", (event) => choose(...event.target.value.split("/").map(Number)));
$("state-choice").addEventListener("change", () => { state.after = 0; attempt(drawRequests); });
$("tag-choice").addEventListener("change", (event) => { state.tag = event.target.value; drawTags(); });
$("first-page").addEventListener("click", () => { state.after = 0; attempt(drawRequests); });
$("next-page").addEventListener("click", () => { state.after = state.next; attempt(drawRequests); });
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => state.picture && (drawBurn(), drawModels()), 150); });
follow();
