// What is served: which models, what they are, what was measured on them.

import { forgetAttack } from "./attack.js";
import { $, element } from "./dom.js";
import { showExamples } from "./examples.js";
import { scaleNoise } from "./noise.js";
import { showReport } from "./report.js";
import { start } from "./running.js";
import { ask, askForKey, showProblem, which } from "./server.js";
import { showSnippets } from "./snippets.js";
import { page } from "./state.js";

/** Ask what is served; then ask it about the image, if one was chosen before the answer came. */
export async function meet(choose) {
  if ((await describe(choose)) && page.picture) choose(page.picture.file);
}

export async function describe(choose) {
  const signal = start("model");
  try {
    offerModels((await ask("/v1/models", { signal })).models);
    showModel(await ask("/v1/model" + which(), { signal }), signal);
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    if (error.status === 503) setTimeout(() => signal.aborted || meet(choose), 1000 * (error.wait || 1));
    if (error.status === 401) askForKey();
    if (error.status !== 401 || page.key) showProblem(error.message, true);
    $("model").textContent = error.message;
    return false;
  }
}

/** Where several are served the page names the one that is meant, and a person chooses; and perhaps another beside it. */
function offerModels(models) {
  const options = (chosen) =>
    models.map(({ name, version }) => {
      const value = new URLSearchParams({ model: name, version }).toString();
      return element("option", { value, selected: value === chosen }, `${name}, version ${version}`);
    });
  $("which").replaceChildren(...options($("which").value));
  $("beside").replaceChildren(element("option", { value: "" }, "nothing"), ...options($("beside").value));
  $("which-field").hidden = $("beside-field").hidden = models.length < 2;
}

function showModel(found, signal) {
  forgetAttack();
  page.model = found;
  const { spec } = found;
  showProblem("");
  $("key").removeAttribute("aria-invalid");
  const [height, width] = spec.image_size;
  // No-break spaces: on a phone lines end at the dots, not inside of "8 × 8 pixels".
  const size = `${width}\u00a0×\u00a0${height}\u00a0pixels`;
  $("model").textContent = `${found.name} · ${spec.network} · ${spec.num_classes}\u00a0classes · ${size}`;
  $("preview").classList.toggle("few-pixels", Math.max(height, width) < 160);
  const towers = spec.towers != null;
  $("dummy").hidden = spec.fold === "none" || towers;
  $("tower").hidden = !towers;
  $("no-dummy").hidden = spec.fold !== "none";
  $("dummy-usual").textContent = found.robustness_in_words.dummy_mass ?? "";
  $("class-list").replaceChildren(...spec.labels.map((label) => element("li", {}, label)));
  $("classes-title").textContent = `The ${spec.num_classes} classes it knows`;
  $("classes").hidden = false;
  scaleNoise(spec.threat_model);
  $("noise-report").textContent = spec.robustness
    ? "says how much of that the model withstood."
    : "says that nobody measured what it does to this model.";
  showReport();
  showSnippets();
  showExamples(signal);
}
