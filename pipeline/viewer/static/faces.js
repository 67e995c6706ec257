// Where each person's face is at a time: at a sampled frame as it was found, between two sampled frames interpolated.
import { ask } from "./page.js";

const WINDOW_SECONDS = 60;

export class Faces {
  constructor(clipId, model, step) {
    Object.assign(this, { clipId, model, step });
    this.windows = new Map();
  }

  // Asks for the stretch around a time, and for the next one before it is needed.
  async load(seconds) {
    await this.#window(Math.floor(seconds / WINDOW_SECONDS));
    this.#window(Math.floor((seconds + 15) / WINDOW_SECONDS));
  }

  #window(place) {
    if (!this.windows.has(place)) {
      const own = { persons: null };
      const [from, to] = [place * WINDOW_SECONDS, (place + 1) * WINDOW_SECONDS];
      own.ready = ask(`/api/clips/${this.clipId}/faces?model=${this.model}&from=${from}&to=${to}`)
        .then(found => { own.persons = found; })
        .catch(error => { this.windows.delete(place); throw error; });
      this.windows.set(place, own);
      if (this.windows.size > 20) this.windows.delete(this.windows.keys().next().value);
    }
    return this.windows.get(place).ready;
  }

  at(seconds) {
    const own = this.windows.get(Math.floor(seconds / WINDOW_SECONDS));
    return own?.persons ? own.persons.map(each => placed(each, seconds, this.step)).filter(Boolean) : [];
  }

  // The time of the sampled frame before or after one.
  sampled(seconds, direction) {
    const own = this.windows.get(Math.floor(seconds / WINDOW_SECONDS));
    const times = (own?.persons || []).flatMap(each => each.times)
      .filter(time => direction > 0 ? time > seconds + 1e-3 : time < seconds - 1e-3);
    return times.length ? direction > 0 ? Math.min(...times) : Math.max(...times) : null;
  }
}

export function placed({ person, times, boxes, rows, emotions }, seconds, step) {
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= seconds + 1e-3) low = middle + 1; else high = middle;
  }
  const place = low - 1;
  if (place < 0) return null;
  const since = seconds - times[place], here = { person, row: rows[place], emotion: emotions[place], time: times[place] };
  if (since <= 2e-3) return { ...here, box: boxes[place], between: false };
  if (place + 1 === times.length) return since <= step / 2 ? { ...here, box: boxes[place], between: true } : null;
  const gap = times[place + 1] - times[place];
  if (gap > 1.5 * step + 1e-6) return null;
  const share = since / gap, mix = (a, b) => a.map((value, side) => (1 - share) * value + share * b[side]);
  return { ...here, box: mix(boxes[place], boxes[place + 1]), row: mix(rows[place], rows[place + 1]), between: true };
}
