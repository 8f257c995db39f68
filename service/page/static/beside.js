// The answer of another model to the same image, beside the first.

import { bar, inWords } from "./answer.js";
import { $ } from "./dom.js";
import { ask } from "./server.js";

const specs = new Map(); // from the digest of its function to what a model is

/** Ask the model that was chosen to stand beside the first. Where it does not answer, the first one's answer stays. */
export async function askBeside(form, best, signal) {
  $("beside-answer").hidden = true;
  const query = $("beside").value;
  if ($("beside-field").hidden || !query) return;
  $("beside-title").textContent = $("beside").selectedOptions[0].textContent;
  try {
    const { model, predictions } = await ask(`/v1/predict?${query}`, { method: "POST", body: form, signal });
    const [other] = predictions;
    const same = other.label === best.label ? ": the same answer" : ": another answer";
    const spec = await specOf(model.function_digest, query, signal);
    $("beside-headline").replaceChildren(...inWords(other, spec, same));
    $("beside-bars").replaceChildren(...other.top_k.slice(0, 5).map(bar));
  } catch (error) {
    if (signal.aborted) return;
    $("beside-headline").textContent = error.message;
    $("beside-bars").replaceChildren();
  }
  $("beside-answer").hidden = false;
}

/** Its own measurement says below which confidence it is unsure. */
async function specOf(digest, query, signal) {
  if (!specs.has(digest)) specs.set(digest, (await ask(`/v1/model?${query}`, { signal })).spec);
  return specs.get(digest);
}
