// Correcting: what a person says of a clip, of one of its persons or of a span. Each is an object of its own.
import { ask, clock, element, say, state, swatch } from "./page.js";

const OTHERS = [["not_a_face", "Not a face", "x"], ["another_person", "Another person", "p"],
  ["cannot_tell", "Cannot tell", "c"]];
const WORDS = Object.fromEntries(OTHERS.map(([said, text]) => [said, text.toLowerCase()]));

export class Corrections {
  constructor(clipId, model, persons, { now, onchange }) {
    Object.assign(this, { clipId, model, now, onchange, all: [] });
    this.form = document.getElementById("correct");
    this.name = document.getElementById("annotator");
    this.whom = document.getElementById("whom");
    this.name.value = localStorage.getItem("annotator") || "";
    this.name.addEventListener("change", () => localStorage.setItem("annotator", this.name.value.trim()));
    this.whom.replaceChildren(...persons.map(each => element("option", { value: each.person }, `person ${each.person + 1}`)),
      element("option", { value: "" }, "all persons"));
    this.form.addEventListener("submit", event => event.preventDefault());
    for (const edge of ["from", "to"]) {
      document.getElementById(`set-${edge}`).addEventListener("click", () => this.edge(edge));
      document.getElementById(edge).addEventListener("input", () => this.when("span"));
    }
    const emotions = state.collection.own_emotions;
    document.getElementById("says").replaceChildren(
      ...emotions.map((name, place) => element("button", { type: "button", onclick: () => this.emotion(place) },
        swatch(name), name, " ", place < 9 ? element("kbd", {}, String(place + 1)) : null)),
      ...OTHERS.map(([said, text, key]) => element("button", { type: "button", onclick: () => this.send({ said }) },
        text, " ", element("kbd", {}, key))));
  }

  get address() { return `/api/clips/${this.clipId}/corrections?model=${this.model}`; }

  async load() { this.#show(await ask(this.address)); }

  // What was said of a person, as spans within a clip; where two cover a time the later one holds.
  of(person, { start, end }) {
    return this.all.filter(each => each.track_index === null || each.track_index === person).map(each =>
      ({ start: each.start_pts_seconds ?? start, end: each.end_pts_seconds ?? end, label: each.label }));
  }

  emotion(place) {
    const label = state.collection.own_emotions[place];
    if (label) this.send({ said: "emotion", label });
    else say(`There is no emotion ${place + 1}.`, { bad: true });
  }

  edge(name) {
    document.getElementById(name).value = this.now().toFixed(3);
    this.when("span");
  }

  when(value) { for (const each of this.form.elements.when) each.checked = each.value === value; }

  async send(said) {
    const annotator = this.name.value.trim();
    if (!annotator) {
      say("Give your name first: it stands beside each correction.", { bad: true });
      this.name.focus();
      return;
    }
    localStorage.setItem("annotator", annotator);
    const body = { annotator, ...said };
    if (said.said !== "undo") {
      if (this.whom.value !== "") body.track_index = Number(this.whom.value);
      if (this.form.elements.when.value === "span") {
        for (const [edge, field] of [["from", "start_pts_seconds"], ["to", "end_pts_seconds"]]) {
          const { value } = document.getElementById(edge);
          if (value !== "") body[field] = Number(value);
        }
      }
    }
    try {
      this.#show(await ask(this.address,
        { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }));
      say(said.said === "undo" ? "Taken back." : `Saved: ${said.label || WORDS[said.said]}.`);
    } catch (error) {
      say(error.message, { bad: true });
    }
  }

  undo() {
    const own = this.all.filter(each => each.annotator === this.name.value.trim());
    if (!own.length) {
      say("You have no correction of this clip to take back.", { bad: true });
      return;
    }
    this.send({ said: "undo", undoes: own.at(-1).correction_id });
  }

  #show(all) {
    this.all = all;
    this.onchange();
    const list = document.getElementById("corrections");
    if (!list) return;
    if (!all.length) {
      list.replaceChildren(element("li", { class: "dim" }, "nothing yet"));
      return;
    }
    const mine = this.name.value.trim();
    list.replaceChildren(...all.map(each => {
      const whom = each.track_index === null ? "all persons" : `person ${each.track_index + 1}`;
      const { start_pts_seconds: start, end_pts_seconds: end } = each;
      const when = start === null && end === null ? "whole clip"
        : `${start === null ? "start" : clock(start)} to ${end === null ? "end" : clock(end)}`;
      const text = `${each.label || WORDS[each.said]}: ${whom}, ${when} — ${each.annotator}, `
        + `${each.created.slice(0, 16).replace("T", " ")} UTC `;
      return element("li", {}, each.label ? swatch(each.label) : null, ` ${text}`,
        each.annotator === mine ? element("button", { type: "button", "aria-label": `Undo ${text}`,
          onclick: () => this.send({ said: "undo", undoes: each.correction_id }) }, "Undo") : null);
    }));
  }
}

export const OTHER_KEYS = Object.fromEntries(OTHERS.map(([said, , key]) => [key, said]));
