// The answer to one image: headline, bars, dummy mass.

import { $, element, percent } from "./dom.js";
import { showProblem } from "./server.js";
import { page } from "./state.js";

const UNSURE_BELOW = 0.5;

export function clearAnswer(instead) {
  $("answer").hidden = true;
  $("headline").replaceChildren();
  $("waiting").textContent = instead;
  $("waiting").hidden = false;
}

export function showAnswer(best, milliseconds, level) {
  showProblem("");
  const noise = level ? `, with noise of ${level}/255` : "";
  $("headline").replaceChildren(...inWords(best, page.model?.spec, noise));
  $("bars").replaceChildren(...best.top_k.slice(0, 5).map(bar));
  $("dummy-meter").value = best.dummy_mass;
  $("dummy-meter").setAttribute("aria-valuetext", percent(best.dummy_mass));
  $("dummy-value").textContent = percent(best.dummy_mass);
  $("tower-name").textContent = best.answered_by === "robust" ? "the robust tower" : "the standard tower";
  $("latency").textContent =
    `Answered in ${milliseconds.toFixed(0)}\u00a0ms, from sending the image to having the answer here.`;
  $("waiting").hidden = true;
  $("answer").hidden = false;
}

/** A label, and how sure the model of this spec is; it says so where it is not. */
export function inWords(best, spec, more = "") {
  const words = [element("strong", {}, best.label), ` ${percent(best.confidence)} confidence${more}`];
  return isUnsure(best, spec) ? [...words, " ", element("span", { className: "unsure" }, "unsure")] : words;
}

/** Below the confidence at which the measurement flagged images, where it did; else below a half. */
export function isUnsure({ confidence }, spec) {
  const flagged = spec?.robustness?.rejection?.find((one) => one.score === "confidence");
  return confidence < (flagged?.threshold ?? UNSURE_BELOW);
}

export function bar({ label, confidence }) {
  const meter = element("meter", { value: confidence });
  meter.setAttribute("aria-hidden", "true"); // the number beside it says the same
  return element(
    "li",
    {},
    element("span", { className: "name" }, label),
    element("span", { className: "number" }, percent(confidence)),
    meter,
  );
}
