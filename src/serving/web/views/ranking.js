show((value) => {
  const rows = value.rows || [];
  const best = Math.max(1e-9, ...rows.map((row) => row.score || 0));
  element.replaceChildren(
    make("div", { class: "ranked" },
      value.picture && make("div", { class: "shot" }, picture(value.picture, "the picture that is asked about")),
      make("div", { class: "side" },
        value.notice && make("p", { class: "notice", role: "alert" }, value.notice),
        value.progress && make("p", { class: "soft" }, value.progress),
        !rows.length && !value.notice && !value.progress && make("p", { class: "soft" }, value.hint || ""),
        rows.length > 0 && make("ol", { class: "bars" }, rows.map((row) =>
          make("li", { class: row.chosen ? "chosen" : "" },
            make("div", { class: "text" }, row.text || "(no text)"),
            row.thinking && make("details", { class: "thinking" }, make("summary", null, "Thoughts"), make("div", { class: "text" }, row.thinking)),
            make("div", { class: "measure" },
              make("span", { class: "track" }, make("i", { style: "width:" + (100 * (row.score || 0)) / best + "%" })),
              row.score === null ? null : make("b", null, number(row.score)),
              row.chosen && make("span", { class: "tag kept" }, "best"),
              row.count > 1 && make("span", { class: "soft" }, "said " + row.count + " times")),
            row.note && make("div", { class: "wrong" }, row.note)))))));
});
