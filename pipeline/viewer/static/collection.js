// The collection: filters, counts that follow them, a table or a wall of pictures, pages of rows.
import { ask, breakable, chip, colourOf, counted, decimal, element, go, number, page, percent, query, say, state, stateOf,
  swatch, without } from "./page.js";

const SIZE = { table: 50, wall: 48 };
const NUMBERS = new Set(["Probability", "Entropy", "Agreement", "Persons", "Corrections"]);
// Of clips with faces about which the model is too uncertain to say one.
const NONE = "abstained";
let asking = 0;

const fields = form => [...form.elements].filter(each => each.name);

function filled(parameters, form) {
  const found = without(parameters, "start", "clip", "t", ...fields(form).map(each => each.name));
  for (const each of fields(form)) if (each.value !== "") found.set(each.name, each.value);
  return found;
}

function options(select, values, all = "all") {
  select.replaceChildren(element("option", { value: "" }, all),
    ...values.map(([value, text]) => element("option", { value }, text)));
}

export async function showCollection(asked) {
  document.title = "Labels";
  const get = page("collection-page"), form = get("filters"), { collection } = state;
  options(form.elements.emotion, [...collection.emotions, NONE].map(name => [name, name]));
  options(form.elements.state, ["done", "no_face", "quarantined", "retryable", "changed"].map(name => [name, name]));
  options(form.elements.reason, collection.reasons.map(row => [row.reason, `${row.reason} (${number(row.num)})`]));
  options(form.elements.day, collection.days.map(row => [row.day, `${row.day} (${number(row.num)})`]));
  options(form.elements.show, collection.shows.map(row => [row.show, `${row.show} (${number(row.num)})`]));
  for (const edge of ["min", "max"]) form.elements[`${edge}_entropy`].max = Math.log(collection.emotions.length).toFixed(2);
  document.querySelector(".two-models").hidden = collection.models.length < 2;
  let hidden = false;
  for (const each of fields(form)) {
    each.value = asked.get(each.name) ?? "";
    hidden ||= each.value !== "" && Boolean(each.closest("#more"));
  }
  get("more").open = hidden;
  form.addEventListener("submit", event => event.preventDefault());
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { go(filled(query(), form), { replace: true }); refresh(); }, 150);
  });
  form.addEventListener("reset", () => setTimeout(() => {
    for (const each of fields(form)) each.value = "";
    go(filled(query(), form), { replace: true });
    refresh();
  }));
  for (const kind of ["table", "wall"]) get(`as-${kind}`).addEventListener("click", () => {
    const next = without(query(), "view", "start");
    if (kind === "wall") next.set("view", "wall");
    go(next, { replace: true });
    refresh();
  });
  const turn = by => {
    const next = query(), start = Math.max(0, Number(next.get("start") || 0) + by);
    if (start) next.set("start", start); else next.delete("start");
    go(next, { replace: true });
    refresh();
  };
  const size = () => SIZE[query().get("view") === "wall" ? "wall" : "table"];
  get("before").addEventListener("click", () => turn(-size()));
  get("after").addEventListener("click", () => turn(size()));
  get("drift").addEventListener("toggle", () => { if (get("drift").open) drawDrift().catch(tell); });
  await refresh();
}

const tell = error => say(error.message, { bad: true });

async function refresh() {
  const asked = query(), turn = ++asking, isWall = asked.get("view") === "wall";
  const get = id => document.getElementById(id);
  asked.set("size", SIZE[isWall ? "wall" : "table"]);
  let found;
  try {
    found = await ask(`/api/clips?${without(asked, "view")}`);
  } catch (error) {
    if (turn === asking) tell(error);
    return;
  }
  if (turn !== asking || !get("results")) return;
  get("as-table").setAttribute("aria-pressed", String(!isWall));
  get("as-wall").setAttribute("aria-pressed", String(isWall));
  drawCounts(found);
  const first = found.total ? found.start + 1 : 0, last = found.start + found.rows.length;
  const all = state.collection.num_clips;
  get("found").textContent = `${number(first)} to ${number(last)} of ${number(found.total)}`
    + (found.total < all ? ` that fit, of ${number(all)} clips` : " clips");
  get("before").disabled = !found.start;
  get("after").disabled = last >= found.total;
  get("results").replaceChildren(isWall ? wall(found.rows) : table(found.rows));
  if (get("drift").open) drawDrift().catch(tell);
}

function drawCounts(found) {
  const chosen = query().get("emotion") || "";
  const button = (name, num) => element("button", {
    type: "button", "aria-pressed": String(chosen === name),
    onclick: () => {
      const form = document.getElementById("filters");
      form.elements.emotion.value = chosen === name ? "" : name;
      form.dispatchEvent(new Event("input", { bubbles: true }));
    },
  }, name === NONE ? null : swatch(name), name, element("span", { class: "number" }, number(num)));
  const others = Object.entries(found.states).filter(([name]) => name !== "done");
  document.getElementById("counts").replaceChildren(
    ...Object.entries(found.emotions).map(([name, num]) => button(name, num)),
    ...found.num_abstained || chosen === NONE ? [button(NONE, found.num_abstained)] : [],
    ...others.map(([name, num]) => element("span", { class: "dim" }, `${name.replace("_", " ")} ${number(num)}`)));
}

export function clipLink(row) {
  const next = without(query(), "t", "size");
  next.set("clip", row.clip_id);
  return `/?${next}`;
}

function table(rows) {
  const two = state.collection.models.length > 1;
  const heads = ["Clip", "Emotion", ...two ? ["Other model"] : [], "Probability", "Entropy", "Agreement", "Persons",
    "Night", "Corrections"];
  const body = element("tbody", {}, ...rows.map(row => element("tr", {},
    element("th", { scope: "row", class: "path" }, element("a", { href: clipLink(row) }, ...breakable(row.path))),
    element("td", {}, row.emotion ? chip(row.emotion) : stateOf(row)),
    ...two ? [element("td", {}, chip(row.other_emotion))] : [],
    element("td", { class: "number" }, percent(row.probability)),
    element("td", { class: "number" }, decimal(row.mean_entropy)),
    element("td", { class: "number" }, percent(row.agreement)),
    element("td", { class: "number" }, row.num_tracks === null ? "–" : number(row.num_tracks)),
    element("td", {}, row.day || "–"),
    element("td", { class: "number" }, row.num_corrections ? number(row.num_corrections) : ""))));
  return element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map(head =>
      element("th", { scope: "col", class: NUMBERS.has(head) ? "number" : null }, head)))), body));
}

function wall(rows) {
  return element("ul", { class: "wall" }, ...rows.map(row => {
    const none = () => element("span", { class: "none" }, row.state === "done" ? "no picture" : row.state.replace("_", " "));
    const picture = row.state === "quarantined" ? none()
      : element("img", { src: `/picture/${row.clip_id}?px=240`, alt: "", loading: "lazy", decoding: "async" });
    if (picture.nodeName === "IMG") picture.addEventListener("error", () => picture.replaceWith(none()));
    const link = element("a", { href: clipLink(row) }, picture, element("span", { class: "name" }, ...breakable(row.path)),
      element("span", { class: "dim" }, row.emotion ? swatch(row.emotion) : null,
        row.emotion ? `${row.emotion} ${percent(row.probability)}` : stateOf(row),
        row.num_corrections ? ` · ${counted(row.num_corrections, "correction")}` : ""));
    if (row.emotion) link.style.setProperty("--mark", colourOf(row.emotion));
    return element("li", {}, link);
  }));
}

async function drawDrift() {
  const nights = await ask(`/api/drift?${query()}`);
  const body = document.querySelector(".drift tbody");
  if (!body) return;
  body.replaceChildren(...nights.map(night => {
    const shares = state.collection.emotions.map(name => [name, night[name] / night.num]);
    const bar = element("div", { class: "shares", role: "img",
      "aria-label": shares.map(([name, share]) => `${name} ${percent(share)}`).join(", ") });
    bar.title = bar.getAttribute("aria-label");
    for (const [name, share] of shares) {
      const part = element("div");
      part.style.background = colourOf(name);
      part.style.width = `${100 * share}%`;
      bar.append(part);
    }
    return element("tr", {}, element("th", { scope: "row" }, night.day),
      element("td", { class: "number" }, number(night.num)), element("td", {}, bar),
      element("td", { class: "number" }, decimal(night.mean_entropy)));
  }));
}

export function collectionKey(event) {
  if (event.key !== "/") return false;
  document.querySelector("#filters [name=q]").focus();
  return true;
}
