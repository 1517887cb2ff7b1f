// One record: the question, what came of it, the timeline, both texts, the decisions.

const LEAD = 280; // characters of a folded question
const LONGEST = 60; // characters of an answer among the facts

function fact(name, value, note, tone) {
  const short = value.length > LONGEST ? `${value.slice(0, LONGEST - 1)}…` : value; // the text has it all
  return el("div", { class: tone ? `fact ${tone}` : "fact" }, el("dt", {}, name), el("dd", {}, short),
    note ? el("dd", { class: "note" }, note) : null);
}

// Right or wrong in a word and a sign, never by colour alone.
function judged(run, gold) {
  if (run.right === null) return null;
  return run.right ? "✓ right" : gold === undefined ? "✗ wrong" : `✗ wrong, ${gold} is right`;
}

function tone(run) {
  return run.right === null ? "" : run.right ? "good" : "bad";
}

function facts(record) {
  const { controlled, uncontrolled, gold, same } = record;
  const ours = controlled.usage;
  const found = [fact("Answer", controlled.answer || "none", judged(controlled, gold), tone(controlled))];
  if (uncontrolled) {
    const theirs = uncontrolled.usage;
    const compared = same ? "= same answer" : "≠ other answer";
    found.push(fact("Uncontrolled", uncontrolled.answer || "none", judged(uncontrolled, gold) ?? compared, tone(uncontrolled)));
    const saved = saving(ours.total, theirs.total);
    found.push(fact("Tokens", count(ours.total), `instead of ${count(theirs.total)}`));
    if (saved) found.push(fact("Difference", saved.words, null, saved.share < 0 ? "bad" : "good"));
  } else found.push(fact("Tokens", count(ours.total)));
  found.push(fact("Forced", count(ours.forced), "tokens put in"));
  if (ours.overhead) found.push(fact("Overhead", count(ours.overhead), overheadWords(ours)));
  found.push(fact("Effort", controlled.tier, ending(controlled)));
  return el("dl", { class: "facts" }, ...found);
}

function overheadWords(usage) {
  const parts = ["discarded", "probe", "verifier", "delegated", "reprefilled"].filter((kind) => usage[kind]);
  return parts.map((kind) => `${count(usage[kind])} ${kind}`).join(", ");
}

// A long question is folded, so that what came of it stays in sight.
function question(text) {
  const lead = oneLine(text).slice(0, LEAD);
  if (text.length <= 2 * LEAD) return [el("h2", { dir: "auto" }, text)];
  return [el("h2", { dir: "auto" }, `${lead} …`),
    el("details", {}, el("summary", {}, `Whole question, ${plural(text.length, "character")}`), el("p", { dir: "auto" }, text))];
}

function pager(index) {
  if (data.records.length < 2) return null;
  const step = (to, words) => to >= 0 && to < data.records.length
    ? el("a", { class: "button", href: `#r${to + 1}` }, words)
    : el("span", { class: "button off", "aria-hidden": "true" }, words);
  return el("nav", { class: "pager", "aria-label": "Neighbouring records" }, step(index - 1, "← Previous"),
    el("span", { class: "dim" }, `${count(index + 1)} of ${count(data.records.length)}`), step(index + 1, "Next →"));
}

function showRecord(index) {
  const record = data.records[index];
  const views = [makeView(record.controlled, "controlled")];
  if (record.uncontrolled) views.push(makeView(record.uncontrolled, "uncontrolled"));
  hideTip();
  const panes = views.map((view) => textPane(view, views.length > 1));
  const main = document.getElementById("record");
  main.replaceChildren(
    el("header", { class: "asked" }, el("p", { class: "id" }, `Record ${record.id}`), pager(index),
      ...question(record.question)),
    facts(record),
    timeline(views),
    el("div", { class: views.length > 1 ? "panes two" : "panes" }, ...panes),
    decisionList(views),
  );
  document.title = `${record.id} · ${data.name} · tersely`;
}
