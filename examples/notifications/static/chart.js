// A line chart of the last two minutes, by hand: an SVG, a grid, a line for each series, the values under the pointer.

import {make} from "./page.js";

const POINTS = 121, WIDTH = 360, HEIGHT = 190, LEFT = 38, RIGHT = 8, TOP = 8, BOTTOM = 22;
const svg = (tag, attributes = {}, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
};
const x = age => WIDTH - RIGHT - age * (WIDTH - LEFT - RIGHT) / (POINTS - 1);

export class Chart {
  #points = []; #series; #text; #least; #plot; #legend = {}; #at = null;

  /** series: name in the values → label. text(value) → words. least: the top of the scale is never below this. */
  constructor(title, series, text, least) {
    [this.#series, this.#text, this.#least] = [series, text, least];
    this.element = make("figure", "chart");
    const caption = make("figcaption"), legend = make("div", "legend");
    for (const [index, [name, label]] of Object.entries(series).entries()) {
      const entry = make("span", `key line-${index}`, label);
      this.#legend[name] = make("b", "", "–");
      entry.append(this.#legend[name]);
      legend.append(entry);
    }
    caption.append(make("h2", "", title), legend);
    this.#plot = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title});
    this.#plot.addEventListener("pointermove", event => this.#point(event));
    this.#plot.addEventListener("pointerleave", () => { this.#at = null; this.#draw(); });
    this.element.append(caption, this.#plot);
    this.#draw();
  }

  /** The values of one more second. */
  add(values) {
    this.#points.push(values);
    if (this.#points.length > POINTS) this.#points.shift();
    this.#draw();
  }

  #point(event) {
    const {left, width} = this.#plot.getBoundingClientRect();
    const age = (WIDTH - RIGHT - (event.clientX - left) / width * WIDTH) / (WIDTH - LEFT - RIGHT) * (POINTS - 1);
    this.#at = Math.min(Math.max(Math.round(age), 0), POINTS - 1);
    this.#draw();
  }

  #draw() {
    const names = Object.keys(this.#series), last = this.#points.length - 1;
    const highest = Math.max(this.#least, ...this.#points.flatMap(point => names.map(name => point[name] ?? 0)));
    const step = nice(highest / 3), top = step * Math.ceil(highest / step);
    const y = value => HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    const shapes = [];
    for (let value = 0; value <= top; value += step) {
      shapes.push(svg("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
      shapes.push(svg("text", {x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end"}, Number(value.toPrecision(6)).toLocaleString("en")));
    }
    for (const [age, label] of [[120, "2 min ago"], [60, "1 min ago"], [0, "now"]]) {
      shapes.push(svg("text", {x: x(age), y: HEIGHT - 6, "text-anchor": age === 120 ? "start" : age ? "middle" : "end"}, label));
    }
    names.forEach((name, index) => {
      let path = "", pen = "M";         // a second without a value is a gap in the line
      this.#points.forEach((point, at) => {
        const value = point[name] ?? null;
        if (value !== null) path += `${pen}${x(last - at).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = value === null ? "M" : "L";
      });
      if (path) shapes.push(svg("path", {class: `line-${index}`, d: path}));
      const shown = this.#points[last - (this.#at ?? 0)]?.[name] ?? null;
      this.#legend[name].textContent = shown === null ? "–" : this.#text(shown);
    });
    if (this.#at !== null) shapes.push(svg("line", {class: "hair", x1: x(this.#at), x2: x(this.#at), y1: TOP, y2: HEIGHT - BOTTOM}));
    this.#plot.replaceChildren(...shapes);
  }
}

/** 1, 2 or 5 times a power of ten, not below `value`. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map(factor => factor * power).find(step => step >= value * .999);
}
