"use strict";
// Shows one record at a time and filters the list. Without this script, all records follow each other.

const items = [...document.querySelectorAll(".list li")];
const articles = [...document.querySelectorAll("article")];

function showRecord() {
  const index = Number(/^#r(\d+)/.exec(location.hash)?.[1] ?? 1) - 1;
  const shown = Math.min(Math.max(index, 0), articles.length - 1);
  articles.forEach((article, i) => { article.hidden = i !== shown; });
  items.forEach((item, i) => {
    if (i === shown) item.firstElementChild.setAttribute("aria-current", "true");
    else item.firstElementChild.removeAttribute("aria-current");
  });
  items[shown]?.scrollIntoView({ block: "nearest" });
  const target = document.getElementById(location.hash.slice(1));
  if (target && target !== articles[shown]) target.scrollIntoView({ block: "center" });
  else if (location.hash) document.getElementById("content").scrollIntoView();
}

function applyFilter() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const tag = document.getElementById("tag").value;
  let count = 0;
  items.forEach((item, i) => {
    const text = articles[i].textContent.toLowerCase();
    const passes = (!tag || item.dataset.tags.split(" ").includes(tag)) && words.every((word) => text.includes(word));
    item.hidden = !passes;
    count += passes ? 1 : 0;
  });
  document.getElementById("count").textContent = `${count} of ${items.length} records`;
}

const filter = document.getElementById("filter");
if (filter) {
  filter.hidden = false;
  filter.addEventListener("input", applyFilter);
  filter.addEventListener("submit", (event) => event.preventDefault());
  applyFilter();
}
addEventListener("hashchange", showRecord);
showRecord();
document.documentElement.dataset.ready = "";
