// Which models the server has, and the one that answers. Where there is one, there is nothing to choose.

import { modelNames } from "./client.js";
import { by, make, notify } from "./dom.js";
import { keepSettings } from "./store.js";

export class Models {
  #names = [];

  /** `settings.model` is the choice, which is kept; `changed()` and `openKey()` are called when need is. */
  constructor(settings, changed, openKey) {
    Object.assign(this, { settings, changed, openKey });
    by("models").addEventListener("change", event => {
      settings.model = event.target.value;
      keepSettings(settings);
      changed();
    });
  }

  /** The name of the one that answers; empty until the server has said it. */
  get chosen() {
    return this.#names.includes(this.settings.model) ? this.settings.model : this.#names[0] ?? "";
  }

  /** A copy of the settings for a request. A single model needs no name. */
  added(settings) {
    return { ...structuredClone(settings), model: this.#names.length > 1 ? this.chosen : "" };
  }

  show() {
    const several = this.#names.length > 1, place = by("models");
    by("model").textContent = this.chosen;
    by("model").hidden = several;
    place.hidden = !several;
    if (!several) return;
    if (place.options.length !== this.#names.length) {
      place.replaceChildren(...this.#names.map(name => make("option", { value: name }, name)));
    }
    place.value = this.chosen;
  }

  /** Ask the server for them, if it has not said them yet. */
  async ask() {
    if (this.#names.length) return;
    try {
      this.#names = await modelNames(this.settings.key);
    } catch (error) {
      if (error.status === 401) notify(error.message, "Settings", this.openKey);
      else notify(error.message, "Try again", () => this.ask());
      return;
    }
    this.changed();
  }
}
