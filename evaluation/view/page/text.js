// The text of a run, coloured by what happened to it, with its decisions where they were taken.

// A view: a run with the elements that show it. `tokens` maps an output token to its elements.
function makeView(run, key) {
  return { run, key, marks: [], tokens: [], kindOf: [], box: null, cursor: -1 };
}

function textPane(view, other) {
  const { run, key } = view;
  const id = `pane-${key}`;
  const { usage } = run;
  const facts = `${count(usage.thinking)} thinking + ${plural(usage.answer, "answer token")}, ${ending(run)}`;
  view.box = el("div", { class: "text", role: "region", tabindex: "0", "aria-label": `Text of the ${key} run` });
  let part = null;
  let block = null;
  run.segments.forEach((segment) => {
    const name = segment.thinking ? "Thinking" : "Answer";
    if (name !== part) {
      part = name;
      block = el("div", { class: segment.thinking ? "thinking" : "answer" });
      view.box.append(el("p", { class: "part" }, name), block);
    }
    appendSegment(view, block, segment, other);
  });
  if (block === null) view.box.append(el("p", { class: "dim" }, "Nothing was written."));
  followPointer(view);
  return el("section", { class: "pane card", "aria-labelledby": id },
    el("header", {}, el("h3", { id }, key), el("p", { class: "dim" }, facts)), view.box);
}

function appendSegment(view, block, segment, other) {
  const run = el(KINDS[segment.kind].tag, { class: `seg ${segment.kind}` });
  const before = (at) => {
    const nodes = (segment.marks[at] ?? []).map((number) => decisionMark(view, number));
    if (segment.parting === at && other) nodes.unshift(el("span", { class: "parting", role: "note" }, "the runs part here"));
    return nodes;
  };
  block.append(...before(0), run);
  segment.pieces.forEach((text, i) => {
    if (i > 0) run.append(...before(i));
    run.append(segment.token === null ? text : tokenSpan(view, segment, segment.token + i, text));
  });
  if (segment.pieces.length) block.append(...before(segment.pieces.length));
}

function tokenSpan(view, segment, index, text) {
  const span = el("span", {}, text);
  span.index = index;
  (view.tokens[index] ??= []).push(span);
  view.kindOf[index] = segment;
  return span;
}

function tokenTip(view, index) {
  const { run } = view;
  const segment = view.kindOf[index];
  const text = (view.tokens[index] ?? []).map((span) => span.textContent).join("");
  const rows = signals(run, index).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const head = el("p", { class: "head" }, el("code", {}, visible(text) || "(within a character)"), " ",
    el("span", { class: "dim" }, `token ${count(index + 1)} of ${count(run.tokens)}`));
  const what = segment ? `${segment.thinking ? "thinking" : "answer"}, ${segment.kind}` : "";
  return [head, el("p", { class: "dim" }, what), ...(rows.length ? [el("dl", {}, ...rows)] : [])];
}

// Entropy and probe values of one token, as words.
function signals(run, index) {
  const found = [];
  const entropy = run.entropy?.[index];
  if (entropy !== null && entropy !== undefined) found.push(["entropy", `${significant(entropy)} nats`]);
  for (const [name, values] of Object.entries(run.probe)) {
    const value = values?.[index];
    if (value !== null && value !== undefined) found.push([name, significant(value)]);
  }
  return found;
}

// The token under the cursor is outlined in the text and, by `onCursor`, in the timeline.
function setCursor(view, index) {
  for (const span of view.tokens[view.cursor] ?? []) span.classList.remove("at");
  view.cursor = index;
  for (const span of view.tokens[index] ?? []) span.classList.add("at");
  view.onCursor?.(index);
}

function reveal(view, index) {
  const span = view.tokens[index]?.[0];
  if (!span) return;
  const at = span.getBoundingClientRect();
  const box = view.box.getBoundingClientRect();
  if (at.top < box.top + 24 || at.bottom > box.bottom - 24) view.box.scrollTop += at.top - box.top - box.height / 3;
}

function followPointer(view) {
  view.box.addEventListener("pointerover", (event) => {
    const { index } = event.target;
    if (index === undefined) return;
    setCursor(view, index);
    showTip(() => event.target.getBoundingClientRect(), tokenTip(view, index));
  });
  view.box.addEventListener("pointerout", (event) => {
    if (event.target.index !== undefined) hideTip(150);
  });
}
