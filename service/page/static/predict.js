// One image: shown as the model sees it, and asked about. One request at a time; of what was asked for meanwhile only the
// last counts.

import { clearAnswer, showAnswer } from "./answer.js";
import { forgetAttack } from "./attack.js";
import { askBeside } from "./beside.js";
import { $, bringIntoView } from "./dom.js";
import { remember } from "./history.js";
import { describe } from "./model.js";
import { noiseLevel } from "./noise.js";
import { decodePixels, fitPixels, greyPixels, noisyPixels, paintPixels, pngOf } from "./picture.js";
import { start, stop } from "./running.js";
import { markSample } from "./samples.js";
import { ask, askForKey, formOf, showProblem, which } from "./server.js";
import { showSnippets } from "./snippets.js";
import { page } from "./state.js";

let wanted = 0;
let isAsking = false;

export async function choose(file) {
  const chosen = (page.picture = { file, signal: start("image"), seen: null, original: null });
  stop("sample"); // one that is still being loaded
  markSample(file);
  forgetAttack();
  clearAnswer("Asking the model…");
  showProblem("");
  showSnippets();
  $("attack-live").disabled = true;
  await fit(chosen);
  if (!chosen.signal.aborted) predict();
}

/** Show the chosen image as the model takes it. */
async function fit(chosen) {
  if (page.model) {
    const { channels, image_size: [height, width] } = page.model.spec;
    try {
      const { pixels, original } = await decodePixels(chosen.file);
      const fitted = fitPixels(pixels, width, height);
      Object.assign(chosen, { seen: channels === 1 ? greyPixels(fitted) : fitted, original });
    } catch {
      // Not an image for this browser; the server has the last word and says why.
    }
  }
  if (chosen.signal.aborted) return;
  showPicture();
  $("attack-live").disabled = !chosen.seen;
}

export function showPicture() {
  const { picture, model } = page;
  const isShown = Boolean(picture?.seen);
  for (const id of ["preview", "caption", "noise-field"]) $(id).hidden = !isShown;
  if (!isShown) return;
  const level = noiseLevel();
  paintPixels($("preview"), level ? noisyPixels(picture.seen, level, model.spec.channels) : picture.seen);
  const [height, width] = model.spec.image_size;
  const [fileWidth, fileHeight] = picture.original;
  const sameSize = fileWidth === width && fileHeight === height;
  const how = sameSize ? "the image's own size" : `made from ${fileWidth} × ${fileHeight}: ${model.resizing}`;
  const sent = level
    ? "With noise, this picture is what is sent."
    : "The file itself is sent, and the server does the same to it.";
  $("caption").textContent = `${width} × ${height} pixels, ${how}. ${sent}`;
}

export async function predict() {
  wanted += 1;
  if (isAsking) return;
  isAsking = true;
  let answered;
  do {
    answered = wanted;
    await predictOnce(page.picture, noiseLevel());
  } while (answered !== wanted);
  isAsking = false;
}

async function predictOnce(chosen, level) {
  const { signal } = chosen;
  $("prediction").setAttribute("aria-busy", "true");
  try {
    const noisy = chosen.seen && level ? await pngOf(noisyPixels(chosen.seen, level, page.model.spec.channels)) : null;
    const form = formOf(noisy ?? chosen.file, noisy ? "noise.png" : chosen.file.name);
    const started = performance.now();
    const body = await ask("/v1/predict" + which(), { method: "POST", body: form, signal });
    const milliseconds = performance.now() - started;
    if (body.model.function_digest !== page.model?.function_digest) await meetAnew(chosen, body.model);
    signal.throwIfAborted();
    const best = body.predictions[0];
    showAnswer(best, milliseconds, noisy ? level : 0);
    if (!chosen.isShown) bringIntoView($("prediction"), $("headline"));
    chosen.isShown = true;
    if (!noisy) remember(chosen, best, () => choose(chosen.file));
    await askBeside(form, best, signal);
  } catch (error) {
    if (signal.aborted) return;
    clearAnswer("No prediction for this image.");
    if (error.status === 401) askForKey();
    showProblem(error.message, true);
  } finally {
    $("prediction").removeAttribute("aria-busy");
  }
}

/**
 * Another model answered than the one that the page describes: somebody put it in the other's place, or the first question
 * about it failed. What is said of it is out of date, and so is a picture that was made for it.
 */
async function meetAnew(chosen, answered) {
  if (!(await describe(choose))) return;
  await fit(chosen);
  // The noise was on the picture for the other model.
  if (noiseLevel() && page.model.function_digest === answered.function_digest) predict();
}
