const strip = (cards) => make("div", { class: "strip" }, cards.map((card) =>
  make("button", { type: "button", class: "card" + (card.here ? " here" : ""), title: card.title, onclick: () => trigger("select", { row: card.row, text_index: card.text_index }) },
    make("span", { class: "frame" },
      card.image ? picture(card.image, "") : make("span", { class: "none" }, card.missing || ""),
      make("span", { class: "value" }, card.score === null ? card.status : number(card.score))))));
show((value) => {
  element.hidden = !value.id;
  if (!value.id) { element.replaceChildren(); return; }
  const facts = value.facts.filter(([, told]) => told !== null && told !== "");
  element.replaceChildren(make("div", { class: "record" },
    make("div", { class: "shot" }, value.image ? picture(value.image, "") : make("span", { class: "none" }, value.missing || "")),
    make("div", { class: "side" },
      make("button", { type: "button", class: "close", "aria-label": "close", onclick: () => trigger("clear", {}) }, "×"),
      make("div", { class: "text" }, value.text),
      make("dl", null, facts.map(([name, told]) => [make("dt", null, name), make("dd", null, told)])),
      value.neighbours.length > 0 && make("h4", null, "Neighbours by score"),
      value.neighbours.length > 0 && strip(value.neighbours))));
  element.scrollIntoView({ block: "nearest", behavior: "smooth" });
});
