// Decisions: the marks that stand in the text, what their tooltips say, and the list of all of them.

function decisionTitle(decision) {
  return `${decision.policy}: ${decision.action}`;
}

function decisionPlace(decision) {
  return `${decision.exact ? "at" : "near"} token ${count(decision.position)}`;
}

function decisionBody(decision) {
  const parts = [el("p", { class: "reason" }, decision.reason)];
  if (decision.text.trim()) {
    const [did, would] = decision.action === "trim" ? ["took out", "would take out"] : ["put in", "would put in"];
    parts.push(el("p", { class: "put" }, `${decision.acted ? did : would}: `, el("q", {}, oneLine(decision.text))));
  }
  if (!decision.acted) parts.push(el("p", { class: "shadow" }, "shadow mode: recorded, not carried out"));
  return parts;
}

function decisionTip(decision, number) {
  const head = el("p", { class: "head" }, el("b", {}, `${number + 1} · ${decisionTitle(decision)}`), " ",
    el("span", { class: "dim" }, decisionPlace(decision)));
  return [head, ...decisionBody(decision)];
}

// A button in the text; its label holds the reason, so that a screen reader needs no tooltip.
function decisionMark(view, number) {
  const { decisions } = view.run;
  const decision = decisions[number];
  const said = decision.acted ? "" : ", not carried out (shadow mode)";
  const label = `Decision ${number + 1} of ${decisions.length}: ${decisionTitle(decision)} ${decisionPlace(decision)}${said}. `
    + decision.reason;
  const mark = el("button", { type: "button", class: decision.acted ? "mark" : "mark idle", "aria-label": label },
    String(number + 1));
  const show = () => showTip(() => mark.getBoundingClientRect(), decisionTip(decision, number));
  for (const event of ["focus", "pointerenter", "click", "tip"]) mark.addEventListener(event, show);
  mark.addEventListener("blur", () => hideTip());
  mark.addEventListener("pointerleave", () => hideTip(150));
  mark.addEventListener("keydown", (event) => {
    const to = neighbour(event.key, number, decisions.length);
    if (to === null) return;
    event.preventDefault();
    view.marks[to]?.focus();
  });
  view.marks[number] = mark;
  return mark;
}

// Where a key leads from item `at` of `length`, or null: the same keys for marks, records and tokens.
function neighbour(key, at, length, page = 1) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: page, PageUp: -page }[key];
  if (key === "Home") return 0;
  if (key === "End") return length - 1;
  return step === undefined ? null : Math.min(Math.max(0, at + step), length - 1);
}

function decisionList(views) {
  const sections = views.filter((view) => view.run.decisions.length).map((view) => {
    const items = view.run.decisions.map((decision, number) => {
      const go = el("button", { type: "button", class: decision.acted ? "mark" : "mark idle",
        "aria-label": `Show decision ${number + 1} in the text` }, String(number + 1));
      go.addEventListener("click", () => view.marks[number]?.focus());
      const head = el("p", { class: "head" }, el("b", {}, decisionTitle(decision)), " ",
        el("span", { class: "dim" }, decisionPlace(decision)));
      return el("li", {}, go, el("div", {}, head, ...decisionBody(decision)));
    });
    return el("ol", { class: "decisions", "aria-label": `Decisions of the ${view.key} run` }, ...items);
  });
  const none = el("p", { class: "dim" }, "None: no policy acted, and none would have.");
  return el("section", { class: "card" }, el("h3", {}, "Decisions"), ...(sections.length ? sections : [none]));
}
