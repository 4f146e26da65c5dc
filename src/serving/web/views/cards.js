show((value) => {
  const cards = value.cards || [];
  element.replaceChildren(
    make("div", { class: "head" },
      make("span", { class: "tag " + value.kind }, value.title || ""),
      make("span", { class: "soft" }, value.total === undefined ? "" : value.total.toLocaleString("en")),
      value.pages > 1 && make("span", { class: "pager" },
        make("button", { type: "button", "aria-label": "previous page", disabled: value.page === 0 ? "" : null, onclick: () => trigger("input", { page: value.page - 1 }) }, "‹"),
        make("span", null, (value.page + 1).toLocaleString("en") + " / " + value.pages.toLocaleString("en")),
        make("button", { type: "button", "aria-label": "next page", disabled: value.page + 1 >= value.pages ? "" : null, onclick: () => trigger("input", { page: value.page + 1 }) }, "›"))),
    cards.length
      ? make("div", { class: "cards" }, cards.map((card) =>
          make("button", { type: "button", class: "card", title: card.title, onclick: () => trigger("select", { row: card.row, text_index: card.text_index }) },
            make("span", { class: "frame" },
              card.image ? picture(card.image, "") : make("span", { class: "none" }, card.missing || ""),
              make("span", { class: "value" }, card.score === null ? card.status : number(card.score))),
            make("span", { class: "caption" }, card.text || "…"))))
      : make("p", { class: "soft" }, value.total === undefined ? "" : "None."));
});
