// The dialog of settings. Every change is kept at once; there is nothing to confirm.

import { by, make } from "./dom.js";
import { DEFAULTS, keepSettings } from "./store.js";

/** Field of a request -> its name here, its range, its step, and what it does. */
const CHOICE = {
  temperature: ["Temperature", 0, null, 0.1, "Higher is more surprising; 0 takes the likeliest."],
  top_p: ["Top p", 0, 1, 0.05, "Of the likeliest, as many as have this share together."],
  top_k: ["Top k", 0, null, 1, "Only so many of the likeliest; 0 is all."],
  min_p: ["Min p", 0, 1, 0.01, "Only those with this share of the likeliest one's."],
  seed: ["Seed", 0, null, 1, "The same one draws the same answer."],
  repetition_penalty: ["Repetition penalty", 0, null, 0.05, "Above 1, what is there already is less likely."],
  presence_penalty: ["Presence penalty", -2, 2, 0.1, "Above 0, what the answer has is less likely."],
  frequency_penalty: ["Frequency penalty", -2, 2, 0.1, "The same, each time that it has it."],
};
const END = {
  max_tokens: ["Max tokens", 1, null, 1, "The longest that an answer may be."],
  min_tokens: ["Min tokens", 0, null, 1, "The model does not end it before."],
};
const NUMBERS = Object.keys({ ...CHOICE, ...END });
const TEXTS = ["logit_bias", "stop", "stop_token_ids"];

/**
 * Fill the dialog and watch it; returns a function that opens it, at a field if one is named.
 *
 * `settings` is changed in place; `current()` is the conversation whose system prompt stands there, and
 * `changed()` is called after every change.
 */
export function watchSettings(settings, current, changed) {
  const dialog = by("settings"), fields = by("fields").elements;
  by("sampling").append(...Object.entries(CHOICE).map(([name, about]) => number(name, ...about)));
  by("ending").append(...Object.entries(END).map(([name, about]) => number(name, ...about)));

  const show = () => {
    fields.system.value = current().system;
    by("system-field").hidden = current().mode !== "chat";
    for (const name of NUMBERS) fields[name].value = settings.sampling[name] ?? "";
    for (const name of [...TEXTS, "theme", "key"]) fields[name].value = settings[name];
    for (const name of ["ignore_eos", "markdown"]) fields[name].checked = settings[name];
  };
  const take = () => {
    current().system = fields.system.value;
    for (const name of NUMBERS) settings.sampling[name] = fields[name].value;
    for (const name of [...TEXTS, "theme", "key"]) settings[name] = fields[name].value;
    for (const name of ["ignore_eos", "markdown"]) settings[name] = fields[name].checked;
    keepSettings(settings);
    document.documentElement.dataset.theme = settings.theme;
    changed();
  };

  by("fields").addEventListener("input", take);
  by("reset").addEventListener("click", () => {
    settings.sampling = { ...DEFAULTS.sampling };
    for (const name of [...TEXTS, "ignore_eos"]) settings[name] = DEFAULTS[name];
    show();
    take();
  });
  by("open-settings").addEventListener("click", () => openSettings(show));
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  return field => openSettings(show, field);
}

function openSettings(show, field) {
  show();
  by("settings").showModal();
  if (field) by("fields").elements[field].focus();
}

function number(name, title, min, max, step, about) {
  const placeholder = name === "seed" ? "random" : "model's";
  const input = make("input", { type: "number", name, id: `field-${name}`, min, placeholder });
  if (max !== null) input.max = max;
  // The arrows go in steps; what is written may lie between them, if it is no whole number.
  input.step = Number.isInteger(step) ? step : "any";
  input.setAttribute("aria-describedby", `about-${name}`);
  // The keys of telephones for numbers have no minus.
  input.inputMode = min < 0 ? "text" : Number.isInteger(step) ? "numeric" : "decimal";
  return make(
    "div",
    { className: "number" },
    make("label", { htmlFor: input.id }, title),
    input,
    make("span", { className: "hint", id: `about-${name}` }, about),
  );
}
