// The timed transcript. It marks the word that the player plays, and moves the player to a word that the user selects.

import { segmentsOf } from "./server.js";

const PAUSE_S = 0.4; // During a pause that is shorter than this, the word before the pause stays marked.

export const clock = (seconds) => {
  const whole = Math.floor(seconds);
  const digits = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return `${hours ? `${hours}:${digits(minutes)}` : minutes}:${digits(whole % 60)}`;
};

/** Shows a transcript in `box` and marks what `player` plays. */
export class Transcript {
  constructor(box, player) {
    this.box = box;
    this.player = player;
    this.units = []; // words, or segments if there are no words: {start, end, element}
    this.current = null;
    box.addEventListener("click", ({ target }) => {
      const unit = this.units.find(({ element }) => element === target);
      if (unit) this.seek(unit);
    });
    box.addEventListener("keydown", (event) => this.onKey(event));
    player.addEventListener("play", () => this.follow());
    player.addEventListener("seeked", () => this.mark());
  }

  /** Show the result of `transcribe`. */
  show(result) {
    this.current = null;
    this.units = [];
    const segments = segmentsOf(result);
    const paragraphs = segments.map((segment) => {
      const paragraph = document.createElement("p");
      if (segments.length > 1) {
        const time = document.createElement("time");
        time.textContent = clock(segment.start);
        paragraph.append(time);
      }
      for (const { word, start, end } of segment.words ?? [{ ...segment, word: segment.text.trim() }]) {
        const element = document.createElement("span");
        element.className = "unit";
        element.textContent = word;
        paragraph.append(element, " ");
        this.units.push({ start, end, element });
      }
      return paragraph;
    });
    this.box.replaceChildren(...paragraphs);
  }

  /** Mark the current word until the player pauses. */
  follow() {
    this.mark();
    if (!this.player.paused) requestAnimationFrame(() => this.follow());
  }

  indexAt(seconds) {
    return this.units.findLastIndex(({ start }) => start <= seconds);
  }

  mark() {
    const seconds = this.player.currentTime;
    const index = this.indexAt(seconds);
    let unit = this.units[index];
    const next = this.units[index + 1];
    const end = unit && next && next.start - unit.end < PAUSE_S ? next.start : unit?.end;
    if (unit && seconds >= end) unit = undefined;
    if (unit === this.current) return;
    this.current?.element.classList.remove("current");
    unit?.element.classList.add("current");
    this.current = unit;
    if (unit) this.reveal(unit.element);
  }

  /** Scroll the box, and not the page, so that a word is visible. */
  reveal(element) {
    const [inner, outer] = [element.getBoundingClientRect(), this.box.getBoundingClientRect()];
    if (inner.top < outer.top) this.box.scrollTop -= outer.top - inner.top;
    if (inner.bottom > outer.bottom) this.box.scrollTop += inner.bottom - outer.bottom + outer.height / 3;
  }

  seek(unit) {
    this.player.currentTime = unit.start;
  }

  onKey(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in steps) {
      const unit = this.units[Math.max(0, this.indexAt(this.player.currentTime + 1e-3) + steps[event.key])];
      if (unit) this.seek(unit);
    } else if (event.key === " " || event.key === "Enter") {
      if (this.player.paused) this.player.play().catch(() => {}); // `player-error` reports a failure.
      else this.player.pause();
    } else {
      return;
    }
    event.preventDefault();
  }
}
