// The timeline: both runs on one axis of tokens, and below them the entropy and every probe.

const LANE = { width: 1000, height: 52 };
const MOST_POINTS = 700;

function timeline(views) {
  const longest = Math.max(1, ...views.map(({ run }) => run.usage.thinking + run.usage.answer));
  const lanes = [...laneNames(views)].map((name) => laneRow(name, views, longest));
  const compared = views.length > 1;
  const rows = [...views.map((view) => ribbonRow(view, longest, lanes, compared)), ...lanes.map((lane) => lane.row), axisRow(longest)];
  return el("section", { class: "card timeline", "aria-labelledby": "timeline" },
    el("header", {}, el("h3", { id: "timeline" }, "Timeline"), legend(compared && lanes.length)), ...rows, timelineHelp(views));
}

function timelineHelp(views) {
  if (!views.some((view) => view.run.tokens)) {
    return el("p", { class: "dim small help" }, "No tokens were recorded, so places are in proportion to the text.");
  }
  return el("p", { class: "dim small help", id: "timeline-help" },
    "Point at a token, or focus a bar and walk with ", el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " ",
    el("kbd", {}, "Page Up"), " ", el("kbd", {}, "Page Down"), ", for its values.");
}

function legend(compared) {
  const items = Object.entries(KINDS).map(([kind, { label, means }]) =>
    el("li", {}, el("span", { class: `swatch ${kind}`, "aria-hidden": "true" }),
      el(KINDS[kind].tag, { class: `seg ${kind}` }, label), el("span", { class: "dim" }, ` ${means}`)));
  items.push(el("li", {}, el("span", { class: "swatch answer", "aria-hidden": "true" }), "answer"));
  items.push(el("li", {}, el("span", { class: "mark still", "aria-hidden": "true" }, "1"), "decision"));
  if (compared) {
    for (const key of ["controlled", "uncontrolled"]) {
      items.push(el("li", {}, el("span", { class: `stroke ${key}`, "aria-hidden": "true" }), `${key} line`));
    }
  }
  return el("ul", { class: "legend", "aria-label": "Legend" }, ...items);
}

function row(label, detail, track) {
  const name = label ? [el("b", {}, label), " "] : [];
  return el("div", { class: "row" }, el("p", { class: "label" }, ...name, el("span", { class: "dim" }, detail)), track);
}

function ribbonRow(view, longest, lanes, compared) {
  const { run, key } = view;
  const written = run.usage.thinking + run.usage.answer;
  const ribbon = el("div", { class: "ribbon" });
  for (const segment of run.segments) {
    const kind = segment.thinking || segment.kind !== "kept" ? segment.kind : "answer";
    const width = (100 * (segment.end - segment.start)) / longest;
    ribbon.append(placed(el("span", { class: `swatch ${kind}` }), (100 * segment.start) / longest, width));
  }
  const room = 1 - written / longest;
  if (compared && room > 0.12) {
    const rest = el("span", { class: "rest" }, `${count(longest - written)} fewer`);
    ribbon.append(placed(rest, (100 * written) / longest, 100 * room));
  }
  const flags = run.decisions.map((decision, number) => flag(view, decision, number, longest));
  const track = el("div", { class: flags.length ? "track flagged" : "track", "data-key": key }, ribbon, ...flags);
  if (run.tokens) makeSlider(view, track, longest, lanes);
  else {
    track.setAttribute("role", "img");
    track.setAttribute("aria-label", `${key} run: ${plural(written, "token")}`);
  }
  return row(key, plural(written, "token"), track);
}

// The same marks as in the text, for the pointer only: the keyboard has those in the text.
function flag(view, decision, number, longest) {
  const node = el("span", { class: decision.acted ? "mark flag" : "mark flag idle", "aria-hidden": "true" }, String(number + 1));
  node.addEventListener("pointerenter", () => showTip(() => node.getBoundingClientRect(), decisionTip(decision, number)));
  node.addEventListener("pointerleave", () => hideTip(150));
  node.addEventListener("click", () => view.marks[number]?.focus());
  return placed(node, (100 * decision.at) / longest);
}

function makeSlider(view, track, longest, lanes) {
  const { run, key } = view;
  const cursor = el("span", { class: "cursor", hidden: true });
  track.append(cursor);
  const cursors = [cursor, ...lanes.map((lane) => lane.cursor)];
  for (const [name, value] of Object.entries({
    role: "slider", tabindex: "0", "aria-label": `Token of the ${key} run`, "aria-describedby": "timeline-help",
    "aria-valuemin": 1, "aria-valuemax": run.tokens, "aria-valuenow": 1, "aria-valuetext": spoken(view, 0),
  })) track.setAttribute(name, value);
  view.onCursor = (index) => {
    for (const one of cursors) placed(one, (100 * (index + 0.5)) / longest).hidden = false;
    track.setAttribute("aria-valuenow", index + 1);
    track.setAttribute("aria-valuetext", spoken(view, index));
  };
  const show = (index) => {
    setCursor(view, index);
    showTip(() => cursor.getBoundingClientRect(), tokenTip(view, index));
  };
  const under = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const index = Math.floor(((event.clientX - box.left) / box.width) * longest);
    return index >= 0 && index < run.tokens ? index : null;
  };
  track.addEventListener("focus", () => {
    show(Math.max(0, view.cursor));
    reveal(view, view.cursor);
  });
  track.addEventListener("blur", () => hideTip());
  for (const place of view.key === "controlled" ? [track, ...lanes.map((lane) => lane.track)] : [track]) {
    place.addEventListener("pointermove", (event) => {
      const index = event.target.matches(".flag") ? null : under(event);
      if (index !== null) show(index);
    });
    place.addEventListener("pointerleave", () => hideTip(150));
    place.addEventListener("click", (event) => {
      const index = under(event);
      if (index !== null && !event.target.matches(".flag")) reveal(view, index);
    });
  }
  track.addEventListener("keydown", (event) => {
    // A slider grows to the right and up, so the vertical keys turn round.
    const turned = { ArrowUp: "ArrowDown", ArrowDown: "ArrowUp", PageUp: "PageDown", PageDown: "PageUp" }[event.key];
    const to = neighbour(turned ?? event.key, view.cursor, run.tokens, Math.max(10, Math.round(run.tokens / 20)));
    if (to === null) return;
    event.preventDefault();
    show(to);
    reveal(view, to);
  });
}

function spoken(view, index) {
  const segment = view.kindOf[index];
  const text = (view.tokens[index] ?? []).map((span) => span.textContent).join("");
  const values = signals(view.run, index).map(([name, value]) => `${name} ${value}`);
  return [`token ${index + 1}`, JSON.stringify(text), segment?.kind, ...values].filter(Boolean).join(", ");
}

function laneNames(views) {
  const names = new Set();
  for (const { run } of views) {
    if (run.entropy) names.add("entropy");
    for (const name of Object.keys(run.probe)) names.add(`probe ${name}`);
  }
  return names;
}

function laneValues(run, name) {
  return name === "entropy" ? run.entropy : run.probe[name.slice("probe ".length)];
}

function laneRow(name, views, longest) {
  const drawn = views.map((view) => [view.key, laneValues(view.run, name)]).filter(([, values]) => values);
  let low = 0;
  let high = name === "entropy" ? 0.1 : 0;
  for (const [, values] of drawn) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (name !== "entropy" && low === 0 && high <= 1) high = 1;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${LANE.width} ${LANE.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const unit = name === "entropy" ? " nats" : "";
  svg.setAttribute("aria-label", `${name} by token, from ${significant(low)} to ${significant(high)}${unit}`);
  for (const [key, values] of drawn.reverse()) {
    const { mean, band } = lanePaths(values, longest, low, high - low || 1);
    if (key === "controlled") svg.append(path(band, "band"));
    svg.append(path(mean, key));
  }
  const cursor = el("span", { class: "cursor", hidden: true });
  const track = el("div", { class: "lane" }, svg, cursor);
  return { track, cursor, row: row(name, `${significant(low)} to ${significant(high)}${unit}`, track) };
}

function path(d, name) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
  node.setAttribute("d", d);
  node.setAttribute("class", name);
  return node;
}

// A line through the means, and a band from least to most where one point has to stand for several tokens.
function lanePaths(values, longest, low, span) {
  const size = Math.max(1, Math.ceil(longest / MOST_POINTS));
  const y = (value) => (LANE.height - 2 - ((value - low) / span) * (LANE.height - 4)).toFixed(1);
  let mean = "";
  let pen = "M";
  const over = [];
  const under = [];
  for (let start = 0; start < values.length; start += size) {
    const chunk = values.slice(start, start + size).filter((value) => value !== null);
    if (!chunk.length) {
      pen = "M"; // a gap
      continue;
    }
    const x = (((start + Math.min(size, values.length - start) / 2) / longest) * LANE.width).toFixed(1);
    mean += `${pen}${x} ${y(chunk.reduce((sum, value) => sum + value, 0) / chunk.length)}`;
    pen = "L";
    over.push(`${x} ${y(Math.max(...chunk))}`);
    under.unshift(`${x} ${y(Math.min(...chunk))}`);
  }
  return { mean, band: size > 1 && over.length ? `M${over.join("L")}L${under.join("L")}Z` : "" };
}

function axisRow(longest) {
  const rough = longest / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough));
  const axis = el("div", { class: "axis", "aria-hidden": "true" });
  for (let at = 0; at <= longest * 0.97; at += step) axis.append(placed(el("span", {}, count(at)), (100 * at) / longest));
  return row("", "token", axis);
}
