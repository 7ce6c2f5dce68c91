// The panel: plain HTML controls, so that labels, tooltips, keyboard and screen readers work as in any page.
// Python sends `fields` (what there is), and answers every change of `values` with `notes` (errors, reasons,
// estimate, texts to copy) and `state` (the run). Nothing is checked or clamped here.

let panels = 0;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// A slider's places from 0 to 1000 and the values they stand for; a wide range is spread over powers of ten.
const toPlace = ({ low, high, log }, value) =>
  1000 * (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
function toValue({ low, high, log, whole }, place) {
  const value = log ? low * (high / low) ** (place / 1000) : low + ((high - low) * place) / 1000;
  return whole ? String(Math.round(value)) : String(Number(value.toPrecision(2)));
}

function control(field, id, change) {
  const about = { id, name: field.name, title: field.help, "aria-describedby": `${id}-note` };
  let input, slider;
  if (field.kind === "choice") {
    input = element("select", about, ...field.choices.map((text) => element("option", { value: text }, text)));
  } else if (field.kind === "switch") {
    input = element("input", { ...about, type: "checkbox" });
  } else {
    input = element("input", { ...about, type: "text", inputmode: field.kind === "text" ? "text" : "decimal", spellcheck: "false" });
  }
  if (field.slider) {
    slider = element("input", { type: "range", min: 0, max: 1000, step: 1, title: field.help, "aria-label": `${field.label}, slider` });
    slider.addEventListener("input", () => { input.value = toValue(field.slider, Number(slider.value)); change(); });
  }
  input.addEventListener("input", () => { place(input.value); change(); });
  function place(value) {
    const number = Number(value);
    if (slider && Number.isFinite(number)) slider.value = Math.min(1000, Math.max(0, toPlace(field.slider, number)));
  }
  const note = element("small", { id: `${id}-note`, class: "note" });
  const row = element("div", { class: "control" },
    element("label", { for: id, title: field.help }, field.label, field.unit ? element("span", { class: "unit" }, ` (${field.unit})`) : ""),
    element("div", { class: "inputs" }, input, ...(slider ? [slider] : [])), note);
  return {
    row,
    get: () => (field.kind === "switch" ? input.checked : input.value),
    set(value) {
      if (field.kind === "switch") input.checked = value === true;
      else if (input.value !== String(value)) input.value = String(value);
      place(value);
    },
    note(error, reason) {
      input.disabled = Boolean(reason);
      if (slider) slider.disabled = Boolean(reason);
      input.setAttribute("aria-invalid", String(Boolean(error)));
      note.textContent = error || reason || "";
      note.classList.toggle("error", Boolean(error));
    },
  };
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { style: "position:fixed;opacity:0" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1200);
}

function render({ model, el }) {
  const id = `labkit-panel-${panels++}`;
  el.classList.add("labkit-panel");
  const controls = {};
  let waiting = null;
  const current = () => Object.fromEntries(Object.entries(controls).map(([name, one]) => [name, one.get()]));
  function change() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      model.set("values", current());
      model.save_changes();
    }, 40);
  }
  const grid = element("div", { class: "grid", role: "group", "aria-label": model.get("title") });
  for (const field of model.get("fields")) {
    controls[field.name] = control(field, `${id}-${field.name}`, change);
    grid.append(controls[field.name].row);
  }

  const say = (what) => model.send(what);
  // what is to be done goes with the knobs as they stand: their last change may still wait here and arrive after it
  const begin = (what) => say({ do: what, values: current() });
  const preset = element("select", { id: `${id}-preset`, title: "Set all knobs at once" },
    ...model.get("presets").map((name) => element("option", { value: name }, name)));
  preset.addEventListener("change", () => say({ do: "preset", name: preset.value }));
  const button = (label, title, act) => {
    const made = element("button", { type: "button", title }, label);
    made.addEventListener("click", () => act(made));
    return made;
  };
  const actions = {
    train: button("Train", "Train with these knobs in the background; the notebook stays usable", () => begin("train")),
    stop: button("Stop", "Stop after this step and keep what was learned", () => say({ do: "stop" })),
    again: button("Train again", "Forget this run and train it anew", () => begin("again")),
  };
  actions.train.classList.add("primary");
  const reset = button("Reset", "Back to the values of the parameters cell", () => say({ do: "reset" }));
  const parameters = button("Copy as parameters", "The parameters cell with these values", (b) => copy(model.get("notes").parameters || "", b));
  const command = button("Copy as command", "Shell commands that run the same: papermill, and the lab's own", (b) => copy(model.get("notes").command || "", b));

  const estimate = element("dl", { class: "estimate" });
  const progress = element("progress", { max: 1, value: 0, "aria-label": "training progress" });
  const status = element("span", { role: "status", "aria-live": "polite" });
  const trouble = element("div", { role: "alert", class: "error" });
  el.append(
    element("div", { class: "bar" }, element("label", { for: preset.id }, "preset "), preset, reset, parameters, command),
    grid, estimate,
    element("div", { class: "bar" }, ...(model.get("stage") ? [actions.train, actions.stop, actions.again, progress] : []), status),
    trouble);

  function showValues() {
    for (const [name, value] of Object.entries(model.get("values"))) controls[name]?.set(value);
  }
  function showNotes() {
    const notes = model.get("notes");
    for (const [name, one] of Object.entries(controls)) one.note(notes.errors?.[name], notes.disabled?.[name]);
    estimate.replaceChildren();
    for (const [name, text, level] of notes.estimate || []) {
      estimate.append(element("div", { class: level || "" }, element("dt", {}, name), element("dd", {}, text)));
    }
  }
  function showState() {
    const state = model.get("state");
    for (const [name, made] of Object.entries(actions)) {
      made.disabled = !(name in (state.can || {}));
      made.title = state.can?.[name] || state.why?.[name] || made.title;
      if (name === "train" && state.label) made.textContent = state.label;
    }
    progress.value = state.share || 0;
    if (status.textContent !== (state.text || "")) status.textContent = state.text || "";
    if (trouble.textContent !== (state.error || "")) trouble.textContent = state.error || "";
  }
  model.on("change:values", showValues);
  model.on("change:notes", showNotes);
  model.on("change:state", showState);
  showValues();
  showNotes();
  showState();
  say({ do: "shown" });
  // plotly gives a chart 700 px where it cannot measure the page; Python makes the charts as wide as the panel
  const watch = new ResizeObserver(() => {
    if (el.clientWidth && el.clientWidth !== model.get("width")) {
      model.set("width", el.clientWidth);
      model.save_changes();
    }
  });
  watch.observe(el);
  return () => watch.disconnect();
}

export default { render };
