// Blind votes: plain HTML. Python sends `battle` (prompt and answers, no names) and `state` (counts, and after the vote
// the names). A battle without an id is none: its prompt says that all is voted on. Answers are set as text, never as
// markup. Keys count only while the focus is inside the view.

const CHOICES = [
  ["a", "A is better", "1", "a"], ["b", "B is better", "2", "b"], ["tie", "Tie", "3", "t"], ["both_bad", "Both bad", "4", "x"],
];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const id = `labkit-vote-${Math.random().toString(36).slice(2)}`;
  // JupyterLab's own shortcuts (a: new cell, x: cut cell) rest while the focus is in here, and only then
  const root = element("div", {
    class: "labkit-vote", tabindex: "0", role: "group", "aria-labelledby": `${id}-title`,
    "aria-describedby": `${id}-help`, "data-lm-suppress-shortcuts": "true",
  });
  const prompt = element("div", { class: "prompt mathjax_ignore", dir: "auto" });
  const sides = {};
  for (const side of ["a", "b"]) {
    const name = element("span", { class: "name" });
    const text = element("div", { class: "text mathjax_ignore", dir: "auto" });
    const letter = side.toUpperCase();
    const pane = element("section", { class: "pane", "aria-label": `Answer ${letter}` }, element("h4", {}, letter, name), text);
    sides[side] = { pane, name, text };
  }
  const buttons = CHOICES.map(([choice, label, digit, letter]) => {
    const made = element("button", { type: "button", title: `Key ${digit} or ${letter}`, "aria-keyshortcuts": `${digit} ${letter}` },
      label, " ", element("kbd", {}, digit));
    made.addEventListener("click", () => vote(choice));
    return [choice, made];
  });
  const panes = element("div", { class: "panes" }, sides.a.pane, sides.b.pane);
  const next = element("button", { type: "button", class: "next", title: "Key n or Enter", "aria-keyshortcuts": "n Enter" },
    "Next pair ", element("kbd", {}, "n"));
  next.addEventListener("click", () => go());
  const status = element("span", { role: "status", "aria-live": "polite" });
  const progress = element("progress", { max: "1", value: "0", "aria-label": "votes towards the goal" });
  const count = element("span", { class: "count" });
  const trouble = element("div", { role: "alert", class: "error" });
  root.append(
    element("div", { class: "bar" }, element("b", { id: `${id}-title` }, "Which answer is better?"), progress, count),
    prompt,
    panes,
    element("div", { class: "bar", role: "group", "aria-label": "your vote" }, ...buttons.map(([, made]) => made), next),
    element("div", { class: "bar" }, status), trouble,
    element("small", { id: `${id}-help` }, "Keys, after a click in here: 1 or a, 2 or b, 3 or t (tie), 4 or x (both bad), n (next)."));
  el.append(root);

  let sent = ""; // the battle and step that was asked for last: a double click asks once
  const voted = () => Boolean(model.get("state").chosen);
  function say(what) {
    root.focus({ preventScroll: true }); // a button that is hidden next would lose it to the page
    const battle = model.get("battle").id;
    if (!battle || sent === `${what.do} ${battle}`) return;
    sent = `${what.do} ${battle}`;
    model.send({ ...what, id: battle });
  }
  const vote = (choice) => { if (!voted()) say({ do: "vote", choice }); };
  const go = () => { if (voted()) say({ do: "next" }); };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    const found = CHOICES.find(([, , digit, letter]) => key === digit || key === letter);
    if (found) vote(found[0]);
    else if (key === "n" || (key === "enter" && event.target === root)) go();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function showBattle() {
    const battle = model.get("battle");
    prompt.textContent = battle.prompt || "";
    for (const side of ["a", "b"]) sides[side].text.textContent = battle[side] || "(no answer)";
    panes.style.display = battle.id ? "" : "none"; // its own display would outdo `hidden`
    root.dataset.battle = battle.id || "";
  }
  function showState() {
    const state = model.get("state");
    const done = Boolean(state.chosen);
    const over = !model.get("battle").id;
    if (state.error) sent = ""; // it may be tried again
    for (const side of ["a", "b"]) {
      sides[side].name.textContent = done ? ` ${state.reveal[side]}` : "";
      sides[side].pane.classList.toggle("chosen", state.chosen === side || state.chosen === "tie");
    }
    for (const [choice, made] of buttons) {
      made.hidden = over;
      made.setAttribute("aria-disabled", String(done)); // not `disabled`, which drops the focus, and keys with it
      made.classList.toggle("primary", state.chosen === choice);
    }
    next.hidden = !done;
    const label = CHOICES.find(([choice]) => choice === state.chosen)?.[1];
    const told = over ? "" : "The models are told after your vote.";
    status.textContent = done ? `Kept: ${label}. A was ${state.reveal.a}, B was ${state.reveal.b}.` : told;
    progress.value = state.goal ? Math.min(1, state.total / state.goal) : 0;
    count.textContent = `${state.total} of ${state.goal} votes on these models, ${state.mine} of them here`;
    trouble.textContent = state.error || "";
  }
  model.on("change:battle", showBattle);
  model.on("change:state", showState);
  showBattle();
  showState();
  return () => { model.off("change:battle", showBattle); model.off("change:state", showState); };
}

export default { render };
