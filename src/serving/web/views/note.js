show((value) => {
  element.hidden = !value.text;
  element.replaceChildren(make("p", { class: "soft" }, value.text || ""), value.command ? make("code", null, value.command) : "");
});
