"use strict";
const charts = document.querySelectorAll(".chart");
const drawn = new Set();
function load() {
  if (!window.Plotly) {  // 4.8 MB, run when the first chart comes into view: the page itself is there before.
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }
}
function draw(node) {
  load();
  const { data, layout } = JSON.parse(node.parentElement.querySelector("script").textContent);
  const style = getComputedStyle(document.documentElement);
  const [text, line, panel, page] = ["--text", "--line", "--panel", "--page"].map(name => style.getPropertyValue(name).trim());
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: line, zerolinecolor: line });
  for (const note of layout.annotations || []) note.bgcolor = page;
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
  const texts = all.map(row => row.join("\n").toLowerCase());
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
        else if (typeof value === "string" && value.length > 40) cell.className = "long";
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

// Charts as SVG and PNG, and every table as CSV.
function keep(name, text) {
  const link = document.createElement("a"), url = URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv" }));
  link.href = url; link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
const cell = value => {
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text))) text = "'" + text;  // No formula for a spreadsheet.
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const csv = rows => rows.map(row => row.map(cell).join(",") + "\r\n").join("");
const words = line => [...line.cells].map(each => each.innerText.replace(/\s+/g, " ").trim());
const named = text => text.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "table";
function tools(place, title, actions) {
  const bar = document.createElement("div"); bar.className = "tools";
  for (const [kind, act] of actions) {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = kind; button.ariaLabel = `${title} as ${kind}`;
    button.addEventListener("click", act); bar.append(button);
  }
  place.after(bar);
}
charts.forEach(node => {
  const title = node.getAttribute("aria-label").split("; the numbers")[0];
  const image = format => () => { draw(node); Plotly.downloadImage(node, { format, filename: named(title), width: 1000,
    height: 500 }); };
  tools(node, title, [["SVG", image("svg")], ["PNG", image("png")]]);
});
document.querySelectorAll(".scroll > table").forEach(table => {
  const title = table.caption.textContent, list = table.closest(".listing");
  const rows = () => [words(table.tHead.rows[0]), ...(list ? JSON.parse(list.querySelector("script").textContent)
    : [...table.tBodies[0].rows].map(words))];
  tools(table.parentElement, title, [["CSV", () => keep(named(title) + ".csv", csv(rows()))]]);
});
