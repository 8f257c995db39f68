// The robustness report: figures, sentences, attack by attack, class by class, and at several sizes of the attack.

import { $, element, percent, sizeText } from "./dom.js";
import { page } from "./state.js";

export function showReport() {
  const words = page.model.robustness_in_words;
  const measured = page.model.spec.robustness;
  $("warnings").replaceChildren(...words.warnings.map((text) => element("p", { className: "warning" }, text)));
  $("sentences").replaceChildren(...words.sentences.map((text) => element("p", {}, text)));
  $("figures").replaceChildren();
  if (measured) {
    $("figures").append(
      figure(percent(measured.clean_accuracy), `right on unchanged ${measured.split} images`),
      figure(percent(measured.worst_case_accuracy), words.worst_case),
    );
    $("attack-rows").replaceChildren(
      ...measured.attacks.map((one) => row(one.name, one.examples, percent(one.worst_case_accuracy))),
    );
    $("class-rows").replaceChildren(...measured.per_class.map(classRow));
  }
  $("attacks").hidden = $("per-class").hidden = !measured;
  showCurve(measured?.curve ?? []);
  showFacts();
  $("report-waiting").hidden = true;
  $("report").hidden = false;
}

function figure(number, words) {
  const group = element("div", {}, element("dt", {}, words));
  group.append(element("dd", {}, number));
  return group;
}

function row(name, ...cells) {
  const made = element("tr", {}, element("th", { scope: "row" }, name));
  made.append(...cells.map((cell) => element("td", {}, String(cell))));
  return made;
}

function classRow({ label, examples, clean_accuracy: clean, worst_case_accuracy: worst }) {
  const cell = (accuracy) => (accuracy === null ? "none measured" : percent(accuracy));
  return row(label, examples, cell(clean), cell(worst));
}

/** The worst case at several sizes of the attack, in reports that have it. */
function showCurve(points) {
  $("curve-rows").replaceChildren(...points.map((one) => row(sizeText(one.eps), percent(one.worst_case_accuracy))));
  $("curve").hidden = !points.length;
}

function showFacts() {
  const { spec, resizing, provider } = page.model;
  const facts = {
    Network: `${spec.network}, ${spec.num_classes} classes, in ${spec.precision}`,
    "Threat model": `${spec.threat_model.norm} ${sizeText(spec.threat_model.eps)}`,
    Input: `${spec.image_size[1]} × ${spec.image_size[0]} pixels, ${spec.channels === 1 ? "greyscale" : "colour"}`,
    "Other sizes": resizing,
    "Runs on": provider,
    Weights: `SHA-256 ${spec.weights_digest}. It detects damage, not forgery.`,
  };
  $("facts").replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    $("facts").append(element("dt", {}, name), element("dd", {}, value));
  }
}
