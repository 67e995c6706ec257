// Plays a clip: the file itself where browsers do, else stretches of it that the server converts, appended as they
// are needed. Times here are the file's own (pts_seconds); the media's begin at its start.

const AHEAD_SECONDS = 8;
const BEHIND_SECONDS = 60;

export class Player {
  constructor(video, clipId, facts, { onframe, onerror }) {
    Object.assign(this, { video, clipId, facts, onframe, onerror });
    this.closed = false;
    this.shown = this.last = this.target = null;
    video.src = facts.is_played ? `/media/${clipId}/whole` : this.#stretches();
    this.#watch();
  }

  get seconds() { return this.shown ?? this.video.currentTime + this.facts.start; }

  get seeking() { return this.target !== null; }

  seek(seconds) {
    const { start, end } = this.facts;
    this.target = Math.min(Math.max(seconds, start), end);
    this.last = null;
    this.video.currentTime = this.target - start;
  }

  close() {
    this.closed = true;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  // A frame is drawn for the time that it carries, not for the clock of the moment. While it seeks, a frame of before
  // may still come; and a browser may leave out the word of any frame, the one that was sought too.
  #watch() {
    const { video } = this, { start } = this.facts;
    const told = (_, facts) => {
      if (this.closed) return;
      this.last = facts.mediaTime + start;
      if (!video.seeking) this.#tell(this.last);
      video.requestVideoFrameCallback(told);
    };
    const hasFrames = Boolean(video.requestVideoFrameCallback);
    if (hasFrames) video.requestVideoFrameCallback(told);
    else for (const name of ["timeupdate", "loadeddata"]) {
      video.addEventListener(name, () => { if (!this.closed && !video.seeking) this.#tell(video.currentTime + start); });
    }
    video.addEventListener("seeked", () => {
      if (this.closed || video.seeking) return;
      if (this.#isLastShown()) this.#tell(this.last);
      setTimeout(() => this.#arrive(), hasFrames ? 150 : 0);
    });
  }

  #isLastShown() {
    const since = this.last === null ? -1 : this.video.currentTime + this.facts.start - this.last;
    return since > -1e-3 && since < .2;
  }

  // Where the frame on the screen is the wanted one already, or its word was left out, none other comes.
  #arrive() {
    if (this.closed || this.video.seeking || !this.video.paused && !this.seeking) return;
    if (this.#isLastShown() && !this.seeking) return;
    this.#tell(this.#isLastShown() ? this.last : this.video.currentTime + this.facts.start);
  }

  #tell(seconds) {
    this.shown = seconds;
    this.target = null;
    this.onframe(seconds);
  }

  #stretches() {
    const source = new MediaSource(), address = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => {
      if (this.buffer || this.closed) return;
      URL.revokeObjectURL(address);
      try {
        this.buffer = source.addSourceBuffer(this.facts.mime);
      } catch (error) {
        this.onerror(error);
        return;
      }
      source.duration = this.facts.end - this.facts.start;
      this.have = new Set();
      this.#fill(source);
    });
    for (const name of ["seeking", "timeupdate"]) this.video.addEventListener(name, () => this.#fill(source));
    return address;
  }

  #wanted() {
    const { stretch_seconds: length, num_stretches: num } = this.facts, now = this.video.currentTime;
    const first = Math.min(num - 1, Math.floor(now / length + 1e-6));
    const last = Math.min(num - 1, Math.floor((now + AHEAD_SECONDS) / length));
    for (let place = first; place <= last; place += 1) if (!this.have.has(place)) return place;
    return null;
  }

  async #fill(source) {
    if (this.filling || this.closed || !this.buffer) return;
    this.filling = true;
    try {
      for (let place = this.#wanted(); place !== null && !this.closed; place = this.#wanted()) {
        const answer = await fetch(`/media/${this.clipId}/${place}.mp4`);
        if (!answer.ok) throw new Error((await answer.json()).error);
        const data = await answer.arrayBuffer();
        if (this.closed || source.readyState === "closed") return;
        if (data.byteLength) await this.#append(data);
        this.have.add(place);
        await this.#forget();
        const all = this.have.size === this.facts.num_stretches;
        if (all && source.readyState === "open") source.endOfStream();
      }
    } catch (error) {
      this.onerror(error);
    } finally {
      this.filling = false;
    }
  }

  #append(data) {
    return this.#change(() => this.buffer.appendBuffer(data));
  }

  // What was played long ago goes, so that an hour does not lie in memory.
  async #forget() {
    const { stretch_seconds: length } = this.facts, low = this.video.currentTime - BEHIND_SECONDS;
    const old = [...this.have].filter(place => (place + 1) * length < low
      || place * length > this.video.currentTime + 3 * AHEAD_SECONDS + BEHIND_SECONDS);
    if (old.length < BEHIND_SECONDS / length) return;
    for (const place of old) {
      this.have.delete(place);
      await this.#change(() => this.buffer.remove(place * length, (place + 1) * length));
    }
  }

  #change(start) {
    return new Promise((resolve, reject) => {
      const end = event => {
        this.buffer.removeEventListener("updateend", end);
        this.buffer.removeEventListener("error", end);
        if (event.type === "error") reject(new Error("the browser cannot play the converted video"));
        else resolve();
      };
      this.buffer.addEventListener("updateend", end);
      this.buffer.addEventListener("error", end);
      start();
    });
  }
}
