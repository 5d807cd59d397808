"use strict";

// The console talks to the same REST and WebSocket API as everyone else. Whatever comes from there is put
// on the page as text, never as HTML.

const CLOSED = new Set(["confirmed", "failed", "cancelled", "expired"]);
const CANCELLABLE = new Set(["pending", "routing", "building"]);
const STEPS = ["pending", "routing", "building", "submitted", "confirmed"];
const TYPE_FIELDS = { market: [], limit: ["limitPrice"], sniper: ["minLiquidity", "maxPrice"] };
const TYPE_HINTS = {
  market: "Now, at the best price.",
  limit: "Once the whole amount is to be had at this price or better, and never worse.",
  sniper: "As soon as there is a way to buy the token, or the pair's pools are large enough.",
};
const QUOTE_MS = 2000;
// A refusal is logged by the browser each time, and seldom is another answer to be had soon.
const REFUSED_QUOTE_MS = 10_000;
const SHOWN_ORDERS = 12;
const SHOWN_TIMELINES = 8;

const element = (id) => document.getElementById(id);
const form = element("order-form");

// ---- Small things ---------------------------------------------------------------------------------

function make(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

async function call(path, options = {}) {
  const response = await fetch(path, { headers: { accept: "application/json" }, ...options });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.message || response.statusText), { body });
  return body;
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function short(id) {
  return id.length > 13 ? `${id.slice(0, 4)}…${id.slice(-6)}` : id;
}

function amountOf(text, digits = 8) {
  const number = Number(text);
  return Number.isFinite(number) ? number.toLocaleString("en-US", { maximumSignificantDigits: digits }) : text;
}

function percent(ppm) {
  return `${(ppm / 10_000).toFixed(2)} %`;
}

// A mint address by its ends; symbols are short.
function token(name) {
  return name.length > 12 ? `${name.slice(0, 4)}…${name.slice(-4)}` : name;
}

function describe(order) {
  return order.side === "buy"
    ? `Buy ${amountOf(order.amount)} ${token(order.outputToken)} with ${token(order.inputToken)}`
    : `Sell ${amountOf(order.amount)} ${token(order.inputToken)} for ${token(order.outputToken)}`;
}

// When an order executes, and until when; nothing for one that does so at once and never expires.
function conditionOf(order) {
  const until = order.expireTime === undefined ? "" : `until ${timeOf(order.expireTime)}`;
  return [triggerOf(order), until].filter((part) => part !== "").join(", ");
}

function triggerOf(order) {
  const input = token(order.inputToken);
  switch (order.type) {
    case "market":
      return "";
    case "limit":
      return `at ${amountOf(order.limitPrice)} ${token(order.outputToken)} per ${input} or better`;
    case "sniper": {
      const liquidity = order.minLiquidity ? ` with ${amountOf(order.minLiquidity)} ${input} or more` : "";
      const price = order.maxPrice ? `, at ${amountOf(order.maxPrice)} ${input} each at most` : "";
      return `when it opens${liquidity}${price}`;
    }
    default:
      return "on a condition that this page does not know";
  }
}

function conditionLine(type, condition) {
  return make("div", { class: "condition" }, make("span", { class: "tag", text: type }), condition);
}

// Whether it waits for its moment, rather than for a worker.
function rests(type, status) {
  return status === "pending" && type !== undefined && type !== "market";
}

function after(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `+${seconds.toFixed(2)} s`;
  if (seconds < 3600) return `+${(seconds / 60).toFixed(1)} min`;
  return seconds < 86_400 ? `+${(seconds / 3600).toFixed(1)} h` : `+${(seconds / 86_400).toFixed(1)} days`;
}

function repeatedly(action, milliseconds) {
  const tick = async () => {
    if (!document.hidden) await action();
    setTimeout(tick, milliseconds);
  };
  tick();
}

// ---- The form and the venues' quotes ----------------------------------------------------------------

function asked() {
  const values = new FormData(form);
  const order = {
    side: values.get("side"),
    amount: values.get("amount").trim(),
    inputToken: values.get("inputToken").trim(),
    outputToken: values.get("outputToken").trim(),
  };
  const slippage = values.get("slippageBps").trim();
  if (slippage !== "") order.slippageBps = slippage;
  // A time rather than seconds from now: what is submitted again with the same key has to be the same order.
  const expiry = values.get("expireTime");
  if (expiry !== "") order.expireTime = new Date(expiry).toISOString();
  order.type = values.get("type");
  for (const name of TYPE_FIELDS[order.type]) {
    const value = values.get(name).trim();
    if (value !== "") order[name] = value;
  }
  return order;
}

// Show what the chosen type needs, in units of the chosen tokens.
function showFields() {
  const order = asked();
  const [input, output] = [token(order.inputToken) || "input", token(order.outputToken) || "output"];
  element("amount-label").textContent = order.side === "sell" ? "Amount to spend" : "Amount to receive";
  element("type-hint").textContent = TYPE_HINTS[order.type];
  for (const field of form.querySelectorAll("[data-type]")) field.hidden = field.dataset.type !== order.type;
  element("limit-label").textContent = `Limit price, ${output} per ${input}`;
  element("liquidity-label").textContent = `Pools hold at least, ${input}`;
  element("max-price-label").textContent = `Price at most, ${input} per ${output}`;
  element("submit").textContent = `Submit ${order.type} order`;
}

// Say how the prices of the form stand beside what is offered now: a limit is output per input, the most
// that a sniper pays the reverse.
function showOffered(price) {
  const { inputToken, outputToken } = asked();
  const [input, output] = [token(inputToken), token(outputToken)];
  const offered = Number(price);
  const known = price !== undefined && offered > 0;
  element("limit-hint").textContent = known ? `Now: ${amountOf(price, 7)} ${output} per ${input}` : "";
  element("max-price-hint").textContent = known ? `Now: ${amountOf(1 / offered, 7)} ${input} per ${output}` : "";
}

function showErrors(problem) {
  const lines = problem?.errors ?? [];
  let placed = 0;
  for (const note of form.querySelectorAll("[data-error]")) {
    const own = lines.filter((line) => line.field === note.dataset.error);
    note.textContent = own.map((line) => line.message).join("; ");
    form.elements[note.dataset.error].setAttribute("aria-invalid", own.length > 0 ? "true" : "false");
    placed += own.length;
  }
  element("form-error").textContent = problem && placed < Math.max(1, lines.length) ? problem.message : "";
}

// What was said of a field, and of the form, is not true of what is there now.
function clearErrors(names) {
  for (const name of names) {
    const note = form.querySelector(`[data-error="${name}"]`);
    if (note === null) continue;
    note.textContent = "";
    form.elements[name].setAttribute("aria-invalid", "false");
  }
  element("form-error").textContent = "";
}

let quoteRound = 0;

// Show what is offered now; return whether it was refused.
async function showQuotes() {
  const order = asked();
  const round = ++quoteRound;
  element("quote-leg").textContent = order.side === "sell" ? "Receives" : "Spends";
  // What is offered now does not depend on when the order is to execute.
  for (const name of ["type", "expireTime", ...TYPE_FIELDS[order.type]]) delete order[name];
  let decision;
  try {
    decision = await call(`/api/quote?${new URLSearchParams(order)}`);
  } catch (error) {
    const refused = error.body?.status < 500;
    if (round !== quoteRound) return refused;
    element("quotes").replaceChildren();
    const lines = error.body?.errors?.map((line) => `${line.field} ${line.message}`);
    element("quote-reason").textContent = lines?.join("; ") ?? error.message;
    showOffered(undefined);
    return refused;
  }
  // An older answer that arrives late is no longer what the form asks.
  if (round !== quoteRound) return false;
  const best = decision.route?.legs[0]?.pool;
  element("quotes").replaceChildren(...decision.quotes.map((quote) => quoteRow(quote, order.side, best)));
  element("quote-reason").textContent = decision.reason;
  showOffered(decision.route?.price);
  return false;
}

function quoteRow(quote, side, best) {
  const venue = make("td", {}, quote.venue, make("small", { text: short(quote.pool), title: quote.pool }));
  if (quote.refusal !== undefined) {
    return make("tr", { class: "refused" }, venue, make("td", { colspan: "4", text: quote.refusal }));
  }
  const leg = side === "sell" ? quote.outputAmount : quote.inputAmount;
  return make(
    "tr",
    { class: quote.pool === best ? "best" : "" },
    venue,
    make("td", { class: "number", text: amountOf(quote.price, 7) }),
    make("td", { class: "number", text: amountOf(leg, 7) }),
    make("td", { class: "number", text: percent(quote.feePpm) }),
    make("td", { class: "number", text: percent(quote.priceImpactPpm) }),
  );
}

let quoteTimer;

function quoteIn(milliseconds) {
  clearTimeout(quoteTimer);
  const timer = setTimeout(async () => {
    const refused = !document.hidden && (await showQuotes());
    // Unless the form changed meanwhile: then it is asked sooner.
    if (timer === quoteTimer) quoteIn(refused ? REFUSED_QUOTE_MS : QUOTE_MS);
  }, milliseconds);
  quoteTimer = timer;
}

function formChanged(...names) {
  showFields();
  if (names.includes("type")) showErrors(null);
  else clearErrors(names);
  key = newKey();
  quoteIn(200);
}

// One key for one filling of the form: a click after a lost answer finds the order instead of buying twice.
let key = newKey();

async function submit(event) {
  event.preventDefault();
  if (form.elements.expireTime.validity.badInput) {
    // Half a time reads as none, which is an order that never expires.
    showErrors({ errors: [{ field: "expireTime", message: "is not a whole time; complete it or clear it" }] });
    return;
  }
  const order = asked();
  if (order.slippageBps !== undefined && /^\d{1,5}$/.test(order.slippageBps)) {
    order.slippageBps = Number(order.slippageBps);
  }
  const button = element("submit");
  button.disabled = true;
  const sentKey = key;
  let accepted;
  try {
    accepted = await call("/api/orders/execute", {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": sentKey },
      body: JSON.stringify(order),
    });
  } catch (error) {
    showErrors(error.body ?? { message: `The gateway cannot be reached. ${whatNow(key === sentKey)}` });
    return;
  } finally {
    button.disabled = false;
  }
  if (key === sentKey) key = newKey();
  showErrors(null);
  follow({
    orderId: accepted.orderId,
    title: describe(order),
    type: order.type,
    condition: conditionOf(order),
    since: Date.now(),
  });
  remember();
}

function whatNow(unchanged) {
  if (unchanged) return "Submit again; nothing is bought twice.";
  return "The order as it was may have been accepted: look at the list before you submit what it is now.";
}

// ---- Timelines: one WebSocket an order --------------------------------------------------------------

const timelines = [];

function follow({ orderId, title, type, condition, since }) {
  const timeline = { orderId, title, type, condition, since, events: [], last: 0, tries: 0 };
  timeline.node = make("article", { class: "timeline", "aria-label": title });
  timelines.unshift(timeline);
  element("timelines").prepend(timeline.node);
  while (timelines.length > SHOWN_TIMELINES) {
    // The oldest that has closed; one that rests stays as long as there is room.
    const closed = timelines.findLastIndex(({ events }) => CLOSED.has(events.at(-1)?.status));
    const [old] = timelines.splice(closed, 1);
    old.dropped = true;
    old.socket?.close();
    old.node.remove();
  }
  element("session-empty").hidden = true;
  draw(timeline);
  connect(timeline);
}

function connect(timeline) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const path = `/api/orders/${encodeURIComponent(timeline.orderId)}/ws?after=${timeline.last}`;
  timeline.socket = new WebSocket(`${scheme}://${location.host}${path}`);
  timeline.socket.onmessage = (message) => {
    const event = JSON.parse(message.data);
    timeline.tries = 0;
    timeline.last = event.sequence;
    timeline.events.push({ ...event, seen: Date.now() });
    draw(timeline);
    refreshSoon();
  };
  timeline.socket.onclose = (close) => {
    if (close.code === 1000 || close.code === 4400 || close.code === 4404 || timeline.dropped) return;
    // Full jitter: the pages of a gateway that restarts do not all come back at once.
    const delay = Math.random() * Math.min(5000, 200 * 2 ** timeline.tries++);
    setTimeout(() => timeline.dropped || connect(timeline), delay);
  };
}

function draw(timeline) {
  const latest = timeline.events.at(-1);
  const status = latest?.status ?? "pending";
  const resting = rests(timeline.type, status);
  const header = make(
    "header",
    {},
    make("strong", { text: timeline.title }),
    make("code", { text: short(timeline.orderId), title: timeline.orderId }),
    make("span", { class: `badge ${status}${resting ? " resting" : ""}`, text: status }),
  );
  if (latest && CANCELLABLE.has(status)) header.append(cancelButton(timeline.orderId));
  if (timeline.condition) header.append(conditionLine(timeline.type, timeline.condition));
  timeline.node.replaceChildren(header, steps(timeline, status, resting), facts(latest));
  if (status === "pending" && latest?.failureMessage !== undefined) {
    const count = timeline.events.filter((event) => event.status === "pending").length - 1;
    const text = `Waits again${count > 1 ? ` (${count} times by now)` : ""}: ${latest.failureMessage}`;
    timeline.node.append(make("p", { class: "why muted", text }));
  } else if (latest?.failureReason !== undefined) {
    const retried = CLOSED.has(status) ? "" : `attempt ${latest.attempt ?? 1}, because: `;
    const text = `${retried}${latest.failureMessage ?? latest.failureReason}`;
    timeline.node.append(make("p", { class: status === "failed" ? "why error" : "why muted", text }));
  }
}

function steps(timeline, status, resting) {
  const reached = new Map();
  for (const event of timeline.events) {
    const at = STEPS.indexOf(event.status);
    // A later attempt, or an order that waits again, goes through the steps again: what it has not reached
    // yet is open once more.
    if (at >= 0) for (const later of STEPS.slice(at + 1)) reached.delete(later);
    reached.set(event.status, event);
  }
  const ended = CLOSED.has(status) && status !== "confirmed";
  const names = ended ? [...STEPS.filter((step) => reached.has(step)), status] : STEPS;
  const list = make("ol", { class: resting ? "steps resting" : "steps" });
  for (const name of names) {
    const event = reached.get(name);
    const item = make("li", { text: name });
    if (event && CLOSED.has(name)) item.className = name;
    else if (event) item.className = name === status ? "done now" : "done";
    if (event) {
      if (timeline.since) item.append(make("time", { text: after(event.seen - timeline.since) }));
    }
    if (name === status) item.setAttribute("aria-current", "step");
    list.append(item);
  }
  return list;
}

function facts(event) {
  const list = make("dl", { class: "facts" });
  const add = (name, text, title) =>
    list.append(make("div", {}, make("dt", { text: name }), make("dd", title ? { text, title } : { text })));
  if (event?.venue !== undefined) add("venue", event.venue);
  if (event?.price !== undefined) add("price", amountOf(event.price));
  if (event?.inputAmount !== undefined) add("in", amountOf(event.inputAmount));
  if (event?.outputAmount !== undefined) add("out", amountOf(event.outputAmount));
  if (event?.txHash !== undefined) add("transaction", short(event.txHash), event.txHash);
  return list;
}

function remember() {
  const kept = timelines.map(({ orderId, title, type, condition }) => ({ orderId, title, type, condition }));
  try {
    sessionStorage.setItem("orders", JSON.stringify(kept));
  } catch {
    // Where a site may keep nothing, the session ends with the page.
  }
}

function recall() {
  let kept = [];
  try {
    kept = JSON.parse(sessionStorage.getItem("orders") ?? "[]");
  } catch {
    // The same.
  }
  // Without `since`: when their steps happened is not known to this page.
  for (const order of kept.reverse()) follow(order);
}

// ---- Recent orders ----------------------------------------------------------------------------------

const pages = [""];
let refreshTimer;

async function showOrders() {
  const filter = element("filter").value;
  const statuses = filter === "open" ? ["pending", "routing", "building", "submitted"] : [filter];
  const query = new URLSearchParams({ limit: SHOWN_ORDERS, pageToken: pages.at(-1) });
  for (const status of statuses) if (status !== "") query.append("status", status);
  if (element("type-filter").value !== "") query.append("type", element("type-filter").value);
  let page;
  try {
    page = await call(`/api/orders?${query}`);
  } catch (error) {
    element("orders-note").textContent = error.message;
    return;
  }
  element("orders").replaceChildren(...page.orders.map(orderRow));
  element("orders-note").textContent = page.orders.length === 0 ? "No orders." : "";
  const older = element("older");
  older.hidden = page.nextPageToken === undefined && pages.length === 1;
  older.textContent = page.nextPageToken === undefined ? "Back to the newest" : "Older orders";
  older.onclick = () => {
    if (page.nextPageToken === undefined) pages.length = 1;
    else pages.push(page.nextPageToken);
    showOrders();
  };
}

function orderRow(order) {
  const condition = conditionOf(order);
  const resting = rests(order.type, order.status);
  const action = make("td", { class: "number" });
  if (CANCELLABLE.has(order.status)) action.append(cancelButton(order.orderId));
  return make(
    "tr",
    { title: order.failureMessage ?? order.orderId },
    make("td", {}, make("time", { datetime: order.createTime, text: timeOf(order.createTime) })),
    make(
      "td",
      {},
      `${describe(order)} `,
      make("code", { text: short(order.orderId) }),
      ...(condition === "" ? [] : [conditionLine(order.type, condition)]),
    ),
    make("td", {}, make("span", { class: `badge ${order.status}${resting ? " resting" : ""}`, text: order.status })),
    make("td", { text: order.venue ?? "" }),
    make("td", { class: "number", text: order.price === undefined ? "" : amountOf(order.price) }),
    action,
  );
}

// The time of today, the date of other days, the year of other years: an order may rest for long.
function timeOf(text) {
  const time = new Date(text);
  return time.toDateString() === new Date().toDateString()
    ? time.toLocaleTimeString("en-GB")
    : time.toLocaleDateString("en-GB", {
        day: "numeric",
        month: "short",
        year: time.getFullYear() === new Date().getFullYear() ? undefined : "numeric",
        hour: "2-digit",
        minute: "2-digit",
      });
}

function cancelButton(orderId) {
  const button = make("button", { type: "button", class: "small", text: "Cancel" });
  button.onclick = async () => {
    button.disabled = true;
    try {
      await call(`/api/orders/${encodeURIComponent(orderId)}/cancel`, { method: "POST" });
      element("orders-note").textContent = "";
    } catch (error) {
      element("orders-note").textContent = error.message;
    }
    showOrders();
  };
  return button;
}

function refreshSoon() {
  clearTimeout(refreshTimer);
  refreshTimer = setTimeout(showOrders, 150);
}

// ---- Health -----------------------------------------------------------------------------------------

async function showHealth() {
  const health = element("health");
  try {
    const response = await fetch("/healthz");
    health.className = response.ok ? "health good" : "health bad";
    health.textContent = response.ok ? "ready" : "not ready";
    health.title = (await response.text()).trim();
  } catch {
    health.className = "health bad";
    health.textContent = "unreachable";
  }
}

form.addEventListener("input", (event) => formChanged(event.target.name));
form.addEventListener("submit", submit);
element("swap").addEventListener("click", () => {
  const { inputToken, outputToken } = form.elements;
  [inputToken.value, outputToken.value] = [outputToken.value, inputToken.value];
  formChanged("inputToken", "outputToken");
});
for (const filter of [element("filter"), element("type-filter")]) {
  filter.addEventListener("change", () => {
    pages.length = 1;
    showOrders();
  });
}
// A browser may have kept what the form held before.
showFields();
recall();
repeatedly(showHealth, 5000);
quoteIn(0);
repeatedly(showOrders, 3000);
