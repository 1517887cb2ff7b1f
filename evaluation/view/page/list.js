// The list of records with its filter, the totals of what is listed, and the address of the record that is shown.

const told = ["note", "tier", "error"];
const acted = (record) =>
  record.controlled.decisions.some((decision) => decision.acted && !told.includes(decision.action));
const WHICH = [
  ["all records", () => true],
  ["acted upon", acted],
  ["untouched", (record) => !acted(record)],
  ["other answer than uncontrolled", (record) => record.same === false],
  ["wrong answer", (record) => record.controlled.right === false],
  ["more tokens than uncontrolled", (record) => record.uncontrolled && total(record, "controlled") > total(record, "uncontrolled")],
];
const total = (record, key) => record[key].usage.total;
const items = [];

function searchable(record) {
  const decisions = record.controlled.decisions.flatMap((decision) => [decision.policy, decision.action, decision.reason]);
  return [record.id, record.question, record.controlled.answer, record.gold ?? "", ...decisions].join("\n").toLowerCase();
}

function item(record, index) {
  const done = record.controlled;
  const tags = [plural(total(record, "controlled"), "token")];
  if (done.right !== null) tags.unshift(judged(done));
  else if (record.same === false) tags.unshift("≠ other answer");
  const saved = record.uncontrolled ? saving(total(record, "controlled"), total(record, "uncontrolled")) : null;
  if (saved) tags.push(saved.words);
  if (done.decisions.length) tags.push(plural(done.decisions.length, "decision"));
  const link = el("a", { href: `#r${index + 1}`, tabindex: "-1" }, el("span", { class: "asked", dir: "auto" }, record.question),
    el("span", { class: "dim" }, tags.map((tag) => tag.replaceAll(" ", "\u00a0")).join(" · ")));
  link.addEventListener("keydown", (event) => {
    const shown = items.filter(({ node }) => !node.hidden);
    const to = neighbour(event.key, shown.findIndex((one) => one.link === link), shown.length, 10);
    if (to === null || event.key === "ArrowLeft" || event.key === "ArrowRight") return;
    event.preventDefault();
    shown[to].link.focus();
  });
  return { record, link, node: el("li", {}, link), text: searchable(record) };
}

function fillTotals(records) {
  const sum = (list, value) => list.reduce((all, record) => all + value(record), 0);
  const compared = records.filter((record) => record.uncontrolled);
  const judgedOnes = records.filter((record) => record.controlled.right !== null);
  const cells = [["Records", count(records.length)], ["Tokens", count(sum(records, (r) => total(r, "controlled")))]];
  if (compared.length) {
    const ours = sum(compared, (r) => total(r, "controlled"));
    const theirs = sum(compared, (r) => total(r, "uncontrolled"));
    cells.push(["Uncontrolled", count(theirs)], ["Difference", saving(ours, theirs)?.words ?? "0% saved"]);
  }
  cells.push(["Forced", count(sum(records, (r) => r.controlled.usage.forced))]);
  cells.push(["Decisions", count(sum(records, (r) => r.controlled.decisions.length))]);
  if (judgedOnes.length) {
    cells.push(["Right", `${count(judgedOnes.filter((r) => r.controlled.right).length)} of ${count(judgedOnes.length)}`]);
  }
  document.getElementById("totals").replaceChildren(
    ...cells.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function applyFilter() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [, wanted] = WHICH[document.getElementById("which").value];
  for (const { record, node, text } of items) node.hidden = !(wanted(record) && words.every((word) => text.includes(word)));
  const listed = items.filter(({ node }) => !node.hidden);
  document.getElementById("found").textContent = listed.length
    ? `${count(listed.length)} of ${plural(items.length, "record")}` : "No record fits; clear the filter to see all.";
  fillTotals(listed.map(({ record }) => record));
  rove();
}

// One record of the list is a tab stop: the one shown, or the first that is listed.
function rove() {
  for (const { link } of items) link.tabIndex = -1;
  const listed = items.filter(({ node }) => !node.hidden);
  const stop = listed.find(({ link }) => link.getAttribute("aria-current")) ?? listed[0];
  if (stop) stop.link.tabIndex = 0;
}

function address() {
  const found = /^#r(\d+)$/.exec(location.hash);
  return found ? Math.min(Math.max(1, Number(found[1])), data.records.length) - 1 : null;
}

function openRecord(index) {
  items.forEach(({ link }, i) => (i === index ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  rove();
  showRecord(index);
  items[index]?.node.scrollIntoView({ block: "nearest" });
}

function start() {
  if (data.records.length > 1) {
    items.push(...data.records.map(item));
    document.getElementById("items").append(...items.map(({ node }) => node));
    const which = document.getElementById("which");
    WHICH.forEach(([words], i) => which.append(el("option", { value: i }, words)));
    document.getElementById("list").hidden = false;
    document.getElementById("body").classList.add("several");
    document.getElementById("search").addEventListener("input", applyFilter);
    which.addEventListener("change", applyFilter);
    applyFilter();
  } else fillTotals(data.records);
  addEventListener("hashchange", () => {
    if (address() !== null) openRecord(address());
  });
  openRecord(address() ?? 0);
  document.documentElement.dataset.ready = "";
}

start();
