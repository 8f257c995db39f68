// The model under attack: images that an evaluation kept, asked about anew, before and after.

import { hideTrio, showTrio, trioAnswer } from "./trio.js";
import { $, element, sizeText } from "./dom.js";
import { fromPixels, pngOf } from "./picture.js";
import { ask, formOf, which } from "./server.js";
import { page } from "./state.js";

/** Offer those of the model that is described; the signal says when another one is. */
export async function showExamples(signal) {
  hideTrio();
  const kept = await ask("/v1/examples" + which(), { signal }).catch(() => null);
  if (signal.aborted) return;
  const examples = kept?.examples ?? [];
  $("example-list").replaceChildren(...examples.map((one, index) => exampleButton(one, index, kept.threat_model)));
  $("kept-examples").hidden = !examples.length;
  $("live-attack").hidden = !kept?.attack_demo;
  $("under-attack").hidden = !examples.length && !kept?.attack_demo;
  if (kept?.attack_demo) {
    const { most_queries: queries, levels } = kept.attack_demo;
    $("attack-help").textContent =
      `The server searches by asking its own model at most ${queries.toLocaleString("en")} times, and changes every ` +
      `value of every pixel by at most ${levels}/255. It knows nothing of the weights; attacks that do are far stronger.`;
  }
  if (examples.length) showExample(examples[0], $("example-list").firstChild, kept.threat_model);
}

function exampleButton(example, index, threatModel) {
  const what = example.fooled ? "fooled" : "withstood";
  const button = element("button", { type: "button", className: "example" }, `${index + 1}: ${example.label}, ${what}`);
  button.addEventListener("click", () => showExample(example, button, threatModel));
  return button;
}

async function showExample(example, button, { norm, eps }) {
  for (const other of $("example-list").children) other.setAttribute("aria-pressed", String(other === button));
  const [before, after] = [example.original, example.attacked].map((text) => fromPixels(text, page.model.spec));
  const change = `Changed by ${example.attack}, by at most ${norm} ${sizeText(eps)}.`;
  const signal = showTrio(before, after, `A ${example.label}. ${change} Both answers are the model's own, now.`);
  try {
    const form = formOf(await pngOf(before), "before.png");
    form.append("image", await pngOf(after), "after.png");
    const { predictions } = await ask("/v1/predict" + which(), { method: "POST", body: form, signal });
    trioAnswer(predictions[0], predictions[1]);
  } catch (error) {
    if (!signal.aborted) $("trio-caption").textContent = error.message;
  }
}
