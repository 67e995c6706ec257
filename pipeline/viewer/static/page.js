// What the two pages share: questions to the server, elements, words, and where the page is.

export const state = { collection: null };

export async function ask(path, options) {
  const answer = await fetch(path, options);
  const type = answer.headers.get("content-type") || "";
  const found = type.includes("json") ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Error(found.error || found || `the server says ${answer.status}`);
  return found;
}

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

export function page(name) {
  const main = document.getElementById("main");
  main.replaceChildren(document.getElementById(name).content.cloneNode(true));
  return id => document.getElementById(id);
}

let silence = 0;
export function say(text, { bad = false } = {}) {
  const node = document.getElementById("said");
  node.textContent = visible(text);
  node.classList.toggle("bad", bad);
  clearTimeout(silence);
  silence = setTimeout(() => { node.textContent = ""; }, bad ? 8000 : 3000);
}

export const number = value => value.toLocaleString("en");
export const counted = (value, noun) => `${number(value ?? 0)} ${noun}${value === 1 ? "" : "s"}`;
export const percent = value => value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`;
export const decimal = (value, places = 2) => value === null || value === undefined ? "–" : value.toFixed(places);

export function clock(seconds) {
  const whole = Math.max(0, seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const rest = (whole % 60).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export function colourOf(emotion) {
  const place = state.collection.emotions.indexOf(emotion);
  return place < 0 ? "transparent" : state.collection.colours[place];
}

export function swatch(emotion) {
  const node = element("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = colourOf(emotion);
  return node;
}

// What stands where a clip has no emotion: its state, and why.
export function stateOf(row) {
  const reason = row.reason ? row.reason.replaceAll("_", " ") : "", named = row.state.replace("_", " ");
  if (row.state === "done" || reason.startsWith(named)) return reason || named;
  return reason ? `${named}: ${reason}` : named;
}

// A text in which what prints nothing stands as a code: controls, and what turns the direction of what follows it, with
// which a name could pass for another.
export function visible(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, letter => `\\u${letter.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// A path that may be broken where its parts end, rather than within a word.
export function breakable(path) {
  return visible(path).split(/(?<=[/_\-. ])/).flatMap((part, place) => place ? [element("wbr"), part] : [part]);
}

export function chip(emotion, text) {
  if (!emotion) return document.createTextNode(text || "–");
  return element("span", { class: "chip" }, swatch(emotion), text || emotion);
}

// The address holds what is shown, so that it can be shared: filters in the collection, a clip and a time in its page.
export function query() {
  return new URLSearchParams(location.search);
}

export function go(parameters, { replace = false } = {}) {
  const text = parameters.toString(), address = text ? `/?${text}` : "/";
  if (replace) history.replaceState(null, "", address);
  else {
    history.pushState(null, "", address);
    dispatchEvent(new PopStateEvent("popstate"));
  }
}

export function without(parameters, ...names) {
  const found = new URLSearchParams(parameters);
  for (const name of names) found.delete(name);
  return found;
}

// Links within the page do not load it again.
document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='/']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(new URL(link.href).searchParams);
});
