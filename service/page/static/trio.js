// Three pictures side by side: an image, ten times its change, the changed image; and the answers to both.

import { inWords } from "./answer.js";
import { $ } from "./dom.js";
import { differenceOf, paintPixels } from "./picture.js";
import { start, stop } from "./running.js";
import { page } from "./state.js";

/** Show these pictures in the place of others; the signal says when others take theirs. */
export function showTrio(before, after, caption) {
  const pictures = { "trio-before": before, "trio-change": differenceOf(before, after, 10), "trio-after": after };
  for (const [id, pixels] of Object.entries(pictures)) {
    paintPixels($(id), pixels);
    $(id).classList.toggle("few-pixels", Math.max(pixels.width, pixels.height) < 160);
  }
  $("trio-before-answer").replaceChildren("…");
  $("trio-after-answer").replaceChildren("…");
  $("trio-caption").textContent = caption;
  $("trio").hidden = false;
  return start("trio");
}

export function hideTrio() {
  stop("trio");
  $("trio").hidden = true;
}

/** What the model says of both. */
export function trioAnswer(before, after) {
  $("trio-before-answer").replaceChildren(...inWords(before, page.model.spec));
  $("trio-after-answer").replaceChildren(...inWords(after, page.model.spec));
  $("trio-after-answer").classList.toggle("changed", before.label !== after.label);
}
