// Bars of the scores, and over them a native range input whose thumb is the cut: it drags, and it listens to keys.
const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
const plot = draw("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
const cut = make("input", { type: "range", min: 0, max: 1000, step: 1, class: "cut", "aria-label": "threshold of the score" });
const tip = make("output", { class: "tip" });
const low = make("span"), high = make("span"), counts = make("div", { class: "counts", "aria-live": "polite" });
element.replaceChildren(make("div", { class: "plot" }, plot, cut, tip), make("div", { class: "axis" }, low, make("span", null, "score"), high), counts);
let state = {}, bars = [], held = false, wanted = null, asked = 0;

const scoreAt = () => state.low + (cut.value / 1000) * (state.high - state.low);
const paint = (score) => {
  const part = (score - state.low) / (state.high - state.low || 1);
  bars.forEach((bar, k) => bar.setAttribute("class", (k + 0.5) / bars.length >= part ? "in" : "out"));
  const place = Math.min(1, Math.max(0, part));
  tip.style.left = 100 * place + "%";
  tip.classList.toggle("left", place > 0.8);
  tip.textContent = number(score);
};
// One question at a time: while the server works, only the last place of the handle is remembered.
const tell = () => {
  if (wanted === null || wanted === state.threshold || Date.now() - asked < 3000) return;
  asked = Date.now();
  trigger("input", { threshold: wanted });
};
cut.addEventListener("input", () => { held = true; wanted = scoreAt(); paint(wanted); tell(); });
cut.addEventListener("change", () => { held = false; wanted = scoreAt(); tell(); });

show((value) => {
  if (!value.bins) { element.hidden = true; return; }
  element.hidden = false;
  if (JSON.stringify(value.bins) !== JSON.stringify(state.bins)) {
    const most = Math.max(1, ...value.bins), width = 1000 / value.bins.length;
    // the square root, so that a bar of few pairs can be seen beside one of many
    bars = value.bins.map((count, k) => {
      const height = count ? Math.max(2, 92 * Math.sqrt(count / most)) : 0;
      return draw("rect", { x: k * width + width * 0.06, y: 100 - height, width: width * 0.88, height });
    });
    plot.replaceChildren(...bars);
  }
  state = value;
  asked = 0;
  if (wanted === value.threshold) wanted = null;
  tell();
  low.textContent = number(value.low);
  high.textContent = number(value.high);
  counts.replaceChildren(...value.counts.map(([word, count, kind]) =>
    make("span", { class: kind }, make("b", null, count.toLocaleString("en")), " ", word)));
  if (!held && wanted === null) {
    cut.value = 1000 * (value.threshold - value.low) / (value.high - value.low || 1);
    paint(value.threshold);
  }
});
