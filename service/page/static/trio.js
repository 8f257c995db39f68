// Three pictures side by side: an image, ten times its change, the changed image; and the answers to both.

import { inWords } from "./answer.js";
import { $ } from "./dom.js";
import { differenceOf, paintPixels } from "./picture.js";

export function showTrio(before, after) {
  const pictures = { "trio-before": before, "trio-change": differenceOf(before, after, 10), "trio-after": after };
  for (const [id, pixels] of Object.entries(pictures)) {
    paintPixels($(id), pixels);
    $(id).classList.toggle("few-pixels", Math.max(pixels.width, pixels.height) < 160);
  }
  $("trio-before-answer").replaceChildren("…");
  $("trio-after-answer").replaceChildren("…");
  $("trio").hidden = false;
}

/** What the model says of both; null where it is not known yet. */
export function trioAnswer(before, after) {
  if (before) $("trio-before-answer").replaceChildren(...inWords(before));
  if (after) $("trio-after-answer").replaceChildren(...inWords(after));
  $("trio-after-answer").classList.toggle("changed", Boolean(before && after && before.label !== after.label));
}
