// The page of one clip: its video with boxes in step with the frames, strips of its persons, and what is known at the
// moment.
import { ask, breakable, chip, clock, counted, decimal, element, go, number, page, percent, query, say, state, stateOf,
  visible, without } from "./page.js";
import { Corrections, OTHER_KEYS } from "./correct.js";
import { drawBoxes, drawCrops, drawSeven, drawStrip, personColour } from "./draw.js";
import { Faces } from "./faces.js";
import { Player } from "./player.js";

let open = null;

export function leaveClip() {
  if (!open) return;
  open.player?.close();
  removeEventListener("resize", open.redraw);
  open = null;
}

export async function showClip(clipId, asked) {
  const rest = without(asked, "clip", "t", "person", "token");
  const address = `/api/clips/${encodeURIComponent(clipId)}`;
  const video = ask(`${address}/video`).then(facts => ({ facts }), error => ({ error }));  // It takes the longest.
  const row = await ask(`${address}?${rest}`);
  const get = page("clip-page");
  const own = { clipId, row, get, rest, now: 0, chosen: 0, shots: row.cuts, strips: [], facts: null, player: null };
  open = own;
  document.title = `${visible(row.path)} – Labels`;
  get("path").replaceChildren(...breakable(row.path));
  get("facts").replaceChildren(row.emotion ? chip(row.emotion, `${row.emotion} ${percent(row.probability)}`)
    : stateOf(row),
  ` · entropy ${decimal(row.mean_entropy)} · agreement ${percent(row.agreement)}`
    + ` · ${counted(row.num_tracks, "person")} · ${counted(row.num_faces, "face")} · night ${row.day || "–"}`
    + (row.same_as ? " · the same bytes as another clip" : ""));
  get("back").href = rest.toString() ? `/?${rest}` : "/";
  for (const side of ["before", "after"]) {
    const link = get(`clip-${side}`), other = row.neighbours[side];
    link.hidden = !other;
    if (other) {
      const next = new URLSearchParams(rest);
      next.set("clip", other);
      link.href = `/?${next}`;
    }
  }
  own.redraw = () => redraw(own);
  addEventListener("resize", own.redraw);
  fillPersons(own, Number(asked.get("person") || 1) - 1);
  own.corrections = new Corrections(clipId, 0, row.persons, { now: () => own.now, onchange: own.redraw });
  own.corrections.whom.value = row.persons.length ? String(own.chosen) : "";
  own.corrections.load().catch(tell);
  await openVideo(own, asked, await video);
}

const tell = error => say(error.message, { bad: true });

async function openVideo(own, asked, { facts, error }) {
  const { get, row, clipId } = own;
  if (open !== own) return;
  if (error) {
    note(own, `The video cannot be shown: ${error.message}`);
    get("stage").hidden = true;
    facts = { width: 1, height: 1, start: row.first ?? 0, end: (row.last ?? 0) + row.step, is_absent: true };
  }
  own.facts = facts;
  judge(own).catch(tell);
  own.step = row.step;
  own.faces = new Faces(clipId, 0, own.step);
  get("stage").style.aspectRatio = `${facts.width} / ${facts.height}`;
  get("stage").style.maxWidth = `calc(70vh * ${facts.width} / ${facts.height})`;
  Object.assign(get("seek"), { min: facts.start, max: facts.end, value: facts.start });
  const start = Number(asked.get("t") ?? firstFace(own));
  own.now = Number.isFinite(start) ? Math.min(Math.max(start, facts.start), facts.end) : facts.start;
  bind(own);
  const others = [own.faces.load(own.now).catch(tell), loadStrips(own).catch(tell)];
  if (!facts.is_absent) {
    own.player = new Player(get("video"), clipId, facts, {
      onframe: seconds => { if (open === own) moment(own, seconds); },
      onerror: error => note(own, `The video cannot be played: ${error.message}`),
    });
    if (own.now > facts.start + 1e-3) own.player.seek(own.now);
  }
  await Promise.all(others);
  if (open === own) moment(own, own.now);
}

// Boxes of one video are not drawn on another: whether it is the one that was scored takes a while to tell of a large file.
async function judge(own) {
  const { facts } = own, checking = "Boxes follow once it is known whether this is the file that was scored.";
  while (facts.is_changed === null && open === own) {
    note(own, checking);
    await new Promise(resolve => { setTimeout(resolve, 1000); });
    facts.is_changed = (await ask(`/api/clips/${encodeURIComponent(own.clipId)}/video`)).is_changed;
  }
  if (open !== own) return;
  if (facts.is_changed) {
    note(own, "This is another file than the one that was scored (its bytes differ): no boxes are drawn on it. "
      + "Open the viewer with --input, the folder of that one, or score this one.");
  } else if (own.get("note").textContent === checking) own.get("note").hidden = true;
  redraw(own);
}

// Where the address names no time: what a clip is opened for is its faces.
function firstFace(own) {
  return own.row.persons.length ? Math.min(...own.row.persons.map(each => each.first)) + 1e-4 : NaN;
}

function note(own, text) {
  own.get("note").textContent = text;
  own.get("note").hidden = false;
}

function fillPersons(own, wanted) {
  const { get, row } = own;
  get("person").replaceChildren(...row.persons.map(each =>
    element("option", { value: each.person }, `Person ${each.person + 1}`)));
  if (!row.persons.length) get("person").append(element("option", { value: "" }, "nobody"));
  own.chosen = row.persons.some(each => each.person === wanted) ? wanted : row.persons[0]?.person ?? 0;
  get("person").value = row.persons.length ? String(own.chosen) : "";
  get("persons").tBodies[0].replaceChildren(...row.persons.map(each => element("tr", {},
    element("th", { scope: "row" }, `Person ${each.person + 1}`), element("td", {}, chip(each.emotion)),
    element("td", { class: "number" }, percent(each.probability)),
    element("td", { class: "number" }, decimal(each.entropy)),
    element("td", { class: "number" }, percent(each.agreement)),
    element("td", { class: "number" }, number(each.num_faces)),
    element("td", { class: "number" }, clock(each.first)), element("td", { class: "number" }, clock(each.last)))));
}

async function loadStrips(own) {
  const { get, clipId, facts, step } = own, { models } = state.collection;
  const nodes = [];
  for (let model = 0; model < models.length; model += 1) {
    const strips = await ask(`/api/clips/${clipId}/strips?model=${model}&from=${facts.start}&to=${facts.end}&step=${step}`)
      .catch(error => { if (!model) throw error; return []; });
    if (models.length > 1) nodes.push(element("p", { class: "model" }, `Model ${models[model]}`));
    for (const strip of strips) {
      const canvas = element("canvas", { role: "img", "aria-label": summary(strip) });
      canvas.title = "Click to go there";
      canvas.addEventListener("click", event => {
        const { left, width } = canvas.getBoundingClientRect();
        if (!model) choose(own, strip.person);
        seek(own, facts.start + (event.clientX - left) / width * (facts.end - facts.start));
      });
      const button = element("button", { type: "button", onclick: () => choose(own, strip.person) },
        `${strip.person + 1}`);
      button.setAttribute("aria-label", `Person ${strip.person + 1}`);
      button.style.borderLeft = `.3rem solid ${personColour(strip.person)}`;
      if (!model) button.dataset.person = strip.person;
      nodes.push(button, canvas);
      own.strips.push({ canvas, bins: strip.bins, person: strip.person, isOfFirst: !model });
    }
  }
  get("strips").replaceChildren(...nodes);
}

function summary(strip) {
  const counts = new Map();
  for (const bin of strip.bins) if (bin) counts.set(bin[0], (counts.get(bin[0]) || 0) + 1);
  const total = [...counts.values()].reduce((sum, num) => sum + num, 0);
  const parts = [...counts].sort((a, b) => b[1] - a[1])
    .map(([place, num]) => `${state.collection.emotions[place]} ${percent(num / total)}`);
  return `Person ${strip.person + 1} over time: ${parts.join(", ")}`;
}

function bind(own) {
  const { get } = own, video = get("video");
  get("play").addEventListener("click", () => toggle(own));
  get("boxes").addEventListener("click", () => toggle(own));
  get("seek").addEventListener("input", () => seek(own, Number(get("seek").value)));
  get("sound").addEventListener("click", () => mute(own));
  get("speed").addEventListener("change", () => { video.playbackRate = Number(get("speed").value); });
  get("show-boxes").addEventListener("change", own.redraw);
  get("person").addEventListener("change", () => choose(own, Number(get("person").value)));
  for (const name of ["play", "pause", "ended"]) video.addEventListener(name, () => {
    get("play").textContent = video.paused ? "▶" : "❚❚";
    get("play").setAttribute("aria-label", video.paused ? "Play" : "Pause");
    if (video.paused) remember(own);
  });
  video.addEventListener("seeked", () => remember(own));
}

// The address follows, so that a link leads to this moment.
function remember(own) {
  if (open !== own || query().get("clip") !== own.clipId) return;
  const next = query();
  next.set("t", own.now.toFixed(3));
  next.set("person", own.chosen + 1);
  go(next, { replace: true });
}

function toggle(own) {
  const video = own.get("video");
  if (!own.player) return;
  if (video.paused) {
    if (video.ended || own.now >= own.facts.end - .05) own.player.seek(own.facts.start);
    video.play().catch(tell);
  } else video.pause();
}

function mute(own) {
  const video = own.get("video"), button = own.get("sound");
  video.muted = !video.muted;
  button.setAttribute("aria-pressed", String(video.muted));
}

function seek(own, seconds) {
  if (!own.facts) return;
  own.now = Math.min(Math.max(seconds, own.facts.start), own.facts.end);
  own.player?.seek(own.now);
  moment(own, own.now);
}

function choose(own, person) {
  if (!own.row.persons.some(each => each.person === person)) return;
  own.chosen = person;
  own.get("person").value = String(person);
  own.corrections.whom.value = String(person);
  remember(own);
  redraw(own);
}

function moment(own, seconds) {
  own.now = seconds;
  own.faces.load(seconds).then(() => { if (open === own && own.now === seconds) redraw(own); }).catch(tell);
  redraw(own);
}

function redraw(own) {
  const { get, facts } = own;
  if (!facts || !own.faces) return;
  get("seek").value = own.now;
  get("seek").setAttribute("aria-valuetext", clock(own.now));
  get("time").textContent = `${clock(own.now)} / ${clock(facts.end)}`;
  const places = own.faces.at(own.now), size = { frameWidth: facts.width, frameHeight: facts.height };
  if (!facts.is_absent) {
    // None on a frame of another time, and none on another video.
    const isDrawn = get("show-boxes").checked && !own.player?.seeking && facts.is_changed === false;
    drawBoxes(get("boxes"), isDrawn ? places : [], { ...size, chosen: own.chosen });
  }
  for (const { canvas, bins, person, isOfFirst } of own.strips) {
    const said = isOfFirst ? own.corrections.of(person, facts) : [];
    drawStrip(canvas, bins, { start: facts.start, end: facts.end, now: own.now, shots: own.shots, said });
  }
  for (const button of document.querySelectorAll(".strips button[data-person]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.person) === own.chosen));
  }
  const here = places.find(each => each.person === own.chosen);
  drawSeven(get("seven"), here?.row);
  get("moment-note").textContent = here ? here.between ? `between sampled frames, the last at ${clock(here.time)}`
    : `sampled frame at ${clock(here.time)}` : "no face of this person here";
  const isCut = !own.player?.seeking && facts.is_changed === false;
  if (!facts.is_absent) drawCrops(get("video"), isCut ? here : null, { ...size, face: get("face"), context: get("context") });
}

export function clipKey(event) {
  const own = open;
  if (!own?.corrections) return false;
  const { key } = event, onControl = event.target.matches("button, summary, a, input");
  if ((key === " " || key === "Enter") && onControl && !event.target.matches("input[type=range]")) return false;
  if (event.target.matches("input[type=radio]") && key.startsWith("Arrow")) return false;
  if (key === " ") toggle(own);
  else if (key === "ArrowLeft" || key === "ArrowRight") seek(own, own.now + (key === "ArrowLeft" ? -2 : 2));
  else if (key === "," || key === ".") {
    own.get("video").pause();
    const time = own.faces?.sampled(own.now, key === "." ? 1 : -1);
    if (time !== null && time !== undefined) seek(own, time + 1e-4);
  } else if (key === "ArrowUp" || key === "ArrowDown") {
    const all = own.row.persons.map(each => each.person), place = all.indexOf(own.chosen);
    choose(own, all[place + (key === "ArrowUp" ? -1 : 1)]);
  } else if (key === "[") own.corrections.edge("from");
  else if (key === "]") own.corrections.edge("to");
  else if (key === "\\") own.corrections.when("clip");
  else if (/^[1-9]$/.test(key)) own.corrections.emotion(Number(key) - 1);
  else if (OTHER_KEYS[key]) own.corrections.send({ said: OTHER_KEYS[key] });
  else if (key === "u") own.corrections.undo();
  else if (key === "m") mute(own);
  else if (key === "n" || key === "b") {
    const link = own.get(key === "n" ? "clip-after" : "clip-before");
    if (link.hidden) return false;
    link.click();
  } else if (key === "Escape") own.get("back").click();
  else return false;
  return true;
}
