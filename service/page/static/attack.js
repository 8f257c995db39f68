// An attack on the chosen image, made by the server while the page looks on.

import { $ } from "./dom.js";
import { fromPixels, pngOf } from "./picture.js";
import { isRunning, start, stop } from "./running.js";
import { formOf, send, which } from "./server.js";
import { page } from "./state.js";
import { hideTrio, showTrio, trioAnswer } from "./trio.js";

let itsPictures = null; // the signal that says whether what an attack found is still shown
const WHY = {
  fooled: "The answer changed.",
  queries: "The answer stayed: the search gave up.",
  time: "The answer stayed: the time was up.",
  rate_limited: "Stopped: more questions a second than the server allows.",
  budget_spent: "Stopped: the budget of images is spent.",
};

export function attackOrStop() {
  if (isRunning("attack")) endAttack("Stopped.");
  else attackLive();
}

async function attackLive() {
  const signal = start("attack");
  $("attack-live").textContent = "Stop the attack";
  $("attack-count").textContent = "Waiting for a turn…";
  try {
    const form = formOf(await pngOf(page.picture.seen), "image.png");
    const response = await send("/v1/attack" + which(), { method: "POST", body: form, signal });
    for await (const step of linesOf(response.body)) {
      if (signal.aborted) return;
      showStep(step);
    }
    if (!signal.aborted) endAttack($("attack-count").textContent);
  } catch (error) {
    if (!signal.aborted) endAttack(error.message);
  }
}

function showStep(step) {
  $("attack-count").textContent =
    `${step.queries} questions asked; now ${step.label} with ${(100 * step.confidence).toFixed(1)}\u00a0%. ` +
    (step.stopped ? (WHY[step.stopped] ?? `Stopped: ${step.stopped}.`) : "");
  if (!step.stopped) return;
  const { spec } = page.model;
  const search = `a search of ${step.queries} questions, which saw answers only`;
  const caption = step.stopped === "fooled" ? `Found by ${search}.` : `Not fooled: the furthest that ${search}, came.`;
  itsPictures = showTrio(fromPixels(step.original, spec), fromPixels(step.attacked, spec), caption);
  trioAnswer(step.before, step);
  for (const other of $("example-list").children) other.setAttribute("aria-pressed", "false");
}

/** Leave this in the place of how far it came. */
function endAttack(said) {
  stop("attack");
  $("attack-live").textContent = "Attack the chosen image";
  $("attack-count").textContent = said;
}

/** Another image or model is there, of which an attack that runs, or what one found, says nothing. */
export function forgetAttack() {
  endAttack("");
  if (itsPictures?.aborted === false) hideTrio();
}

/** The objects in a stream that has one on each line; a line without one says that the server is still there. */
async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}
