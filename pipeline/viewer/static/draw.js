// What is drawn: boxes on the video, strips of persons over time, crops, bars.
import { colourOf, element, percent, state } from "./page.js";

const fitted = canvas => {
  const { width, height } = canvas.getBoundingClientRect(), scale = devicePixelRatio || 1;
  const [columns, rows] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  return { pen: canvas.getContext("2d"), width: columns, height: rows, scale };
};

export const personColour = person => state.collection.person_colours[person % state.collection.person_colours.length];

export function drawBoxes(canvas, places, { frameWidth, frameHeight, chosen }) {
  const { pen, width, height, scale } = fitted(canvas);
  pen.clearRect(0, 0, width, height);
  const across = width / frameWidth, down = height / frameHeight;
  pen.font = `${13 * scale}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const { person, box, row, emotion, between } of places) {
    const [left, top, right, bottom] = [box[0] * across, box[1] * down, box[2] * across, box[3] * down];
    pen.lineWidth = (person === chosen ? 4 : 2) * scale;
    pen.strokeStyle = personColour(person);
    pen.setLineDash(between ? [6 * scale, 4 * scale] : []);
    pen.strokeRect(left, top, right - left, bottom - top);
    pen.setLineDash([]);
    const best = row.indexOf(Math.max(...row)), name = state.collection.emotions[best];
    const text = `${person + 1} ${emotion === null ? "abstained" : `${name} ${percent(row[best])}`}`;
    const tall = 18 * scale, wide = pen.measureText(text).width + 10 * scale;
    const y = top >= tall ? top - tall : Math.min(bottom, height - tall), x = Math.max(0, Math.min(left, width - wide));
    pen.fillStyle = "rgb(0 0 0 / .78)";
    pen.fillRect(x, y, wide, tall);
    pen.fillStyle = emotion === null ? "#8a8a8a" : colourOf(name);
    pen.fillRect(x, y, 4 * scale, tall);
    pen.fillStyle = "#ffffff";
    pen.fillText(text, x + 7 * scale, y + tall / 2 + scale);
  }
  canvas.setAttribute("aria-label", places.length
    ? places.map(({ person, emotion }) => `person ${person + 1}: ${emotion || "abstained"}`).join(", ") : "no face here");
}

// Shots are marked by a notch, what people said by a line along the top.
export function drawStrip(canvas, bins, { start, end, now, shots, said }) {
  const { pen, width, height, scale } = fitted(canvas);
  pen.clearRect(0, 0, width, height);
  const step = width / bins.length;
  bins.forEach((bin, place) => {
    if (!bin) return;
    const tall = Math.max(2 * scale, bin[1] * height);
    pen.fillStyle = state.collection.colours[bin[0]];
    pen.fillRect(place * step, height - tall, Math.ceil(step), tall);
  });
  const style = getComputedStyle(document.documentElement);
  const at = seconds => (seconds - start) / (end - start) * width;
  const fill = (colour, ...box) => { pen.fillStyle = colour; pen.fillRect(...box); };
  const [text, page] = ["--text", "--page"].map(name => style.getPropertyValue(name));
  for (const each of said) {
    const [left, right] = [at(Math.max(start, each.start)), at(Math.min(end, each.end))];
    fill(page, left, 0, right - left, 7 * scale);
    fill(each.label ? colourOf(each.label) : text, left, 0, right - left, 5 * scale);
  }
  for (const shot of shots) {
    fill(page, at(shot) - 1.5 * scale, 0, 3 * scale, height);
    fill(text, at(shot) - .5 * scale, 0, scale, height);
  }
  pen.fillStyle = text;
  pen.fillRect(Math.min(width - 2 * scale, at(now)), 0, 2 * scale, height);
}

export function drawSeven(node, row) {
  if (!row) {
    node.replaceChildren();
    return;
  }
  if (!node.firstElementChild) {
    node.append(element("div", { class: "seven" }, ...state.collection.emotions.flatMap(name => {
      const bar = element("div");
      bar.style.background = colourOf(name);
      return [element("span", {}, name), element("div", { class: "track" }, bar),
        element("span", { class: "number" })];
    })));
  }
  const cells = node.firstElementChild.children;
  row.forEach((value, place) => {
    cells[3 * place + 1].firstElementChild.style.width = `${100 * value}%`;
    cells[3 * place + 2].textContent = percent(value);
  });
}

export function drawCrops(video, place, { frameWidth, frameHeight, face, context }) {
  const scale = video.videoWidth / frameWidth, stretch = video.videoHeight / frameHeight;
  for (const canvas of [face, context]) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  if (!place || !video.videoWidth) return;
  const [left, top, right, bottom] = place.box;
  face.getContext("2d").drawImage(video, left * scale, top * stretch, (right - left) * scale, (bottom - top) * stretch,
    0, 0, face.width, face.height);
  context.height = Math.round(context.width * frameHeight / frameWidth);
  const pen = context.getContext("2d"), across = context.width / frameWidth, down = context.height / frameHeight;
  pen.drawImage(video, 0, 0, context.width, context.height);
  pen.fillStyle = "#000000";
  pen.fillRect(left * across, top * down, (right - left) * across, (bottom - top) * down);
}
