// Shared by all views. Texts become text nodes, never HTML: whatever a model or a data set says is shown as it is.
const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
};
const picture = (source, alt) => make("img", { src: source, alt: alt || "", draggable: "false" });
const number = (value) => Number(value).toFixed(2);
// A draw function is called with every new value, and once with the first.
const show = (draw) => {
  const update = () => draw(props.value || {});
  watch("value", update);
  update();
};
