// The slider for random noise.

import { $, inLevels, sizeText } from "./dom.js";

const DEFAULT_LEVELS = 32; // of 255, for models that are not meant to withstand changes of single pixels

export const noiseLevel = () => Number($("noise").value);

/** From no noise to four times what the model is meant to withstand, where that is a bound on single pixels. */
export function scaleNoise({ norm, eps }) {
  const most = norm === "linf" ? Math.max(1, Math.min(255, Math.round(4 * 255 * eps))) : DEFAULT_LEVELS;
  $("noise").max = most;
  $("noise").step = most > 128 ? Math.max(1, Math.floor(most / 64)) : 1;
  const meant = norm === "linf" ? `The model is meant to withstand at most ${sizeText(eps)}${inLevels(eps)}.` : "";
  $("noise-scale").textContent = `Up or down by this much, in every value of every pixel. ${meant}`;
  sayNoise();
}

export function sayNoise() {
  const level = noiseLevel();
  $("noise-value").textContent = level ? `${level}/255` : "none";
  $("noise").setAttribute("aria-valuetext", level ? `${level} of 255` : "none");
}
