// One tooltip for everything: it opens on hover and on focus, can be hovered itself, and Escape closes it.

const tip = el("div", { id: "tip", role: "tooltip", hidden: true });
document.body.append(tip);
let tipAnchor = null;
let tipTimer = 0;

// `anchor` gives the rectangle to stand beside whenever it is asked, as panes scroll under the tip.
function showTip(anchor, nodes) {
  clearTimeout(tipTimer);
  tipAnchor = anchor;
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  placeTip();
}

function hideTip(delay = 0) {
  clearTimeout(tipTimer);
  tipTimer = setTimeout(() => {
    tip.hidden = true;
    tipAnchor = null;
    const focused = document.activeElement;
    if (delay && focused?.matches(".mark")) focused.dispatchEvent(new Event("tip"));
  }, delay);
}

function placeTip() {
  if (tip.hidden || tipAnchor === null) return;
  const at = tipAnchor();
  const gap = 8;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const above = at.top - height - gap;
  const room = document.documentElement.clientWidth - width - gap; // without the scrollbar
  tip.style.left = `${Math.max(gap, Math.min(at.left + at.width / 2 - width / 2, room))}px`;
  tip.style.top = `${above >= gap ? above : Math.min(at.bottom + gap, innerHeight - height - gap)}px`;
}

tip.addEventListener("pointerenter", () => clearTimeout(tipTimer));
tip.addEventListener("pointerleave", () => hideTip(150));
addEventListener("scroll", placeTip, { capture: true, passive: true });
addEventListener("resize", placeTip);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !tip.hidden) hideTip();
});
