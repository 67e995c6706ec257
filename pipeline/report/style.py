"""How pages look and what they do: one style and one script, which every page holds."""

from __future__ import annotations

STYLE = """
:root { --text: #1b1f24; --dim: #59616b; --page: #ffffff; --panel: #f4f6f8; --line: #d0d6dc; --accent: #0072b2;
  --edge: #7a838d; --warn: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaed; --dim: #a4adb8; --page: #14171a; --panel: #1f2429; --line: #3a424b; --accent: #56b4e9;
    --edge: #8a939e; --warn: #ff9a4d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin-bottom: 0; }
.skip { position: absolute; left: -100rem; } .skip:focus { position: static; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
caption { text-align: left; color: var(--dim); padding-bottom: .25rem; max-width: calc(100vw - 2rem); }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td { max-width: 30rem; overflow-wrap: break-word; }
tbody th { font-weight: 500; } .number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.confusion td { text-align: right;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 60%), transparent); }
.confusion .right { font-weight: 700; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem; }
dl div { background: var(--panel); border-radius: .4rem; padding: .5rem .7rem; }
dt { color: var(--dim); font-size: .8rem; } dd { margin: 0; }
.sheet { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr));
  gap: .75rem; }
.sheet figure { margin: 0; background: var(--panel); border-radius: .4rem; padding: .3rem; font-size: .75rem; }
.sheet img { max-width: 49%; height: auto; margin-right: 1%; }
.plot { margin: 1rem 0; } figcaption { color: var(--dim); }
.chart { height: 20rem; touch-action: pan-y; } .label { margin: 0; color: var(--dim); }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; color: var(--dim); font-size: .875rem; }
h4 { margin: 1rem 0 0; font-size: .95rem; } article { margin-bottom: 2rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem; }
.strip { list-style: none; display: flex; gap: .4rem; padding: .2rem; margin: .5rem 0; overflow-x: auto; }
.strip li { flex: 0 0 auto; text-align: center; color: var(--dim); } .strip img { display: block; }
.warning { border-left: .3rem solid var(--warn); background: var(--panel); padding: .5rem .7rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin-top: 1rem; }
input, select, button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--edge);
  border-radius: .3rem; padding: .2rem .5rem; max-width: 100%; }
button { cursor: pointer; } button:disabled { opacity: .5; cursor: default; }
th button { border: 0; background: none; padding: 0; font-weight: 600; text-align: left; }
th[aria-sort="ascending"] button::after { content: " ▲"; } th[aria-sort="descending"] button::after { content: " ▼"; }
.count { color: var(--dim); margin: .5rem 0 0; } .listing .scroll { margin: .25rem 0 .5rem; }
"""


SCRIPT = """
"use strict";
const charts = document.querySelectorAll(".chart");
const drawn = new Set();
function draw(node) {
  if (!window.Plotly) {  // 4.8 MB, run when the first chart comes into view: the page itself is there before.
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }
  const { data, layout } = JSON.parse(node.nextElementSibling.textContent);
  const style = getComputedStyle(document.documentElement);
  const [text, line, panel] = ["--text", "--line", "--panel"].map(name => style.getPropertyValue(name).trim());
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: line, zerolinecolor: line });
  Object.assign(layout, { font: { color: text }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: panel, font: { color: text } } });
  Plotly.react(node, data, layout, { responsive: true, displayModeBar: false });
  drawn.add(node);
}
const seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) {
    seen.unobserve(target); setTimeout(draw, 0, target);
  }
}, { rootMargin: "400px" });
charts.forEach(node => seen.observe(node));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
addEventListener("beforeprint", () => charts.forEach(draw));
const order = new Intl.Collator("en", { numeric: true });
document.querySelectorAll(".listing").forEach(list => {
  const all = JSON.parse(list.querySelector("script").textContent), at = Number(list.dataset.rows);
  const chosen = Number(list.dataset.column), [previous, next] = list.querySelectorAll("nav button");
  const [search, select] = [list.querySelector("input"), list.querySelector("select")];
  const [body, heads] = [list.querySelector("tbody"), [...list.querySelectorAll("thead th")]];
  const texts = all.map(row => row.join("\\n").toLowerCase());
  let start = 0, sorted = null, descending = false;
  const shown = value => value === null || value === "" ? "–" : typeof value !== "number" ? value
    : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  function render() {
    const words = search.value.toLowerCase();
    const found = [...all.keys()].filter(index => texts[index].includes(words)
      && (!select.value || all[index][chosen] === select.value));
    if (sorted !== null) found.sort((a, b) => {
      const [x, y] = [all[a][sorted], all[b][sorted]];
      if (x === null || y === null) return (x === null) - (y === null);
      return (typeof x === "number" && typeof y === "number" ? x - y : order.compare(x, y)) * (descending ? -1 : 1);
    });
    start = Math.max(0, Math.min(start, found.length - 1)); start -= start % at;
    body.replaceChildren(...found.slice(start, start + at).map(index => {
      const line = document.createElement("tr");
      all[index].forEach((value, column) => {
        const cell = document.createElement(column ? "td" : "th");
        if (!column) cell.scope = "row"; else if (typeof value === "number") cell.className = "number";
        cell.textContent = shown(value); line.append(cell);
      });
      return line;
    }));
    const end = Math.min(start + at, found.length), number = value => value.toLocaleString("en");
    list.querySelector(".count").textContent = `${number(found.length && start + 1)} to ${number(end)} of `
      + `${number(found.length)}` + (found.length < all.length ? ` that match, of ${number(all.length)}` : "");
    previous.disabled = !start; next.disabled = end >= found.length;
    previous.parentElement.hidden = found.length <= at;
  }
  search.addEventListener("input", () => { start = 0; render(); });
  select.addEventListener("change", () => { start = 0; render(); });
  list.querySelector("form").addEventListener("submit", event => event.preventDefault());
  previous.addEventListener("click", () => { start -= at; render(); });
  next.addEventListener("click", () => { start += at; render(); });
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    descending = sorted === column && !descending; sorted = column; start = 0;
    heads.forEach((other, n) => other.setAttribute("aria-sort",
      n === column ? descending ? "descending" : "ascending" : "none"));
    render();
  }));
  render();
});
"""
