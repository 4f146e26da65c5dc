const list = make("div", { class: "turns", role: "log", "aria-live": "polite" });
const notice = make("p", { class: "notice", role: "alert" });
element.replaceChildren(list, notice);
const known = [];

const answerOf = (turn, index, open) => {
  const busy = turn.state === "waiting" || turn.state === "growing";
  const thinking = turn.thinking && make("details", { class: "thinking", open: open ? "" : null },
    make("summary", null, turn.thought ? "Thoughts" : busy ? "Thinking …" : "Thoughts, cut off"),
    make("div", { class: "text" }, turn.thinking));
  const score = turn.score !== null
    ? make("span", { class: "score", title: "score of this answer" }, "score ", make("b", null, number(turn.score)))
    : make("button", { class: "link", type: "button", onclick: () => trigger("click", { turn: index }) }, "Score this answer");
  return make("div", { class: "answer " + turn.state },
    thinking,
    turn.answer && make("div", { class: "text" }, turn.answer),
    turn.state === "waiting" && make("div", { class: "soft" }, "Waiting for the model …"),
    turn.state === "growing" && !turn.answer && !turn.thinking && make("div", { class: "soft" }, "Looking …"),
    turn.boxed && make("div", { class: "boxed" }, picture(turn.boxed, "the picture with the boxes of this answer")),
    make("div", { class: "foot" },
      turn.note && make("span", { class: turn.state === "failed" ? "wrong" : "soft" }, turn.note),
      turn.unscored && make("span", { class: "wrong" }, turn.unscored),
      !busy && turn.answer && score));
};

show((value) => {
  const turns = value.turns || [];
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 120;
  notice.textContent = value.notice || "";
  if (!turns.length) {
    known.length = 0;
    list.replaceChildren(make("div", { class: "empty" },
      make("b", null, "Ask about a picture"),
      make("span", null, "Add one or several, type a question, press Enter. Boxes that an answer gives are drawn, and every answer can be scored.")));
    return;
  }
  if (!known.length) list.replaceChildren();
  while (known.length > turns.length) { known.pop(); list.lastChild.remove(); }
  turns.forEach((turn, index) => {
    const told = JSON.stringify(turn);
    if (known[index] === told) return;
    const old = list.children[index];
    const open = old && old.querySelector("details[open]");
    const node = make("article", null,
      make("div", { class: "question" },
        turn.images.length > 0 && make("div", { class: "shots" }, turn.images.map((image) => picture(image, "picture of the question"))),
        turn.question && make("div", { class: "text" }, turn.question)),
      answerOf(turn, index, open));
    old ? old.replaceWith(node) : list.append(node);
    known[index] = told;
  });
  if (atEnd) list.scrollTop = list.scrollHeight;
});
