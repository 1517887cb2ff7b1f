// Small helpers: elements, numbers, words. All text of models enters the page as text nodes, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);

const KINDS = {
  kept: { label: "kept", tag: "span", means: "sampled by the model and kept" },
  forced: { label: "forced", tag: "ins", means: "put into its mouth" },
  trimmed: { label: "trimmed", tag: "del", means: "sampled, then taken back" },
  delegated: { label: "delegated", tag: "mark", means: "written by a helper model" },
};

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Styles go through the object model: the content security policy refuses style attributes.
function placed(node, left, width) {
  node.style.left = `${left}%`;
  if (width !== undefined) node.style.width = `${width}%`;
  return node;
}

const count = (n) => n.toLocaleString("en");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function significant(x) {
  return String(Number(x.toFixed(Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : Math.abs(x) >= 0.1 ? 2 : 4)));
}

// Characters that do not show get a picture, so that a token of white space can be named.
function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}

// A text on one line, for places where its own lines would sprawl.
const oneLine = (text) => text.trim().replace(/\s*\n\s*/g, " ⏎ ");

// How the tokens of one run compare with those of another.
function saving(ours, theirs) {
  if (!theirs) return null;
  const share = 1 - ours / theirs;
  return { share, words: `${Math.abs(100 * share).toFixed(0)}% ${share < 0 ? "more" : "saved"}` };
}

function ending(run) {
  const known = { stop: "ended by itself", length: "cut off at the token limit", interrupted: "interrupted" };
  return known[run.finish] ?? run.finish;
}
