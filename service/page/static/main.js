// The page's events.

import { attackOrStop } from "./attack.js";
import { classifyAll, saveCsv } from "./batch.js";
import { $, focusPrediction } from "./dom.js";
import { meet } from "./model.js";
import { sayNoise } from "./noise.js";
import { choose, predict, showPicture } from "./predict.js";
import { offerSamples } from "./samples.js";
import { showProblem } from "./server.js";
import { copySnippet, showSnippets } from "./snippets.js";
import { page } from "./state.js";

const SLIDER_REST = 150; // milliseconds without a move before the model is asked again

/** The files of a drop or a paste; says so where there is none. */
function chooseFrom(files, origin) {
  if (files.length > 1) classifyAll(files, choose);
  else if (files.length) choose(files[0]);
  else showProblem(`There is no image file in what was ${origin}.`);
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) chooseFrom([...$("file").files]);
  $("file").value = ""; // so that the same file may be chosen again
});
$("which").addEventListener("change", () => meet(choose));
$("beside").addEventListener("change", () => (page.picture ? predict() : null));
$("again").addEventListener("click", () => {
  focusPrediction(); // the button hides itself
  meet(choose);
});
$("batch-save").addEventListener("click", saveCsv);
$("attack-live").addEventListener("click", attackOrStop);
$("snippets").addEventListener("toggle", showSnippets);
$("copy-curl").addEventListener("click", () => copySnippet($("copy-curl"), $("curl-text")));
$("copy-python").addEventListener("click", () => copySnippet($("copy-python"), $("python-text")));

let resting = null;
$("noise").addEventListener("input", () => {
  sayNoise();
  showPicture();
  clearTimeout(resting);
  resting = setTimeout(predict, SLIDER_REST);
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (/^[\x21-\x7e]+$/.test(key)) {
    page.key = key;
    meet(choose);
  } else showProblem("An API key is made of letters, digits and signs, without blanks.");
});

document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (event.target === $("key") && !files.length) return;
  event.preventDefault();
  chooseFrom([...files], "pasted");
});

document.addEventListener("dragenter", (event) => {
  event.preventDefault();
  $("drop-hint").hidden = false; // it covers the page, so that only leaving it ends the drag
});
document.addEventListener("dragover", (event) => event.preventDefault());
$("drop-hint").addEventListener("dragleave", () => ($("drop-hint").hidden = true));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop-hint").hidden = true;
  chooseFrom([...event.dataTransfer.files], "dropped");
});

meet(choose);
offerSamples(choose);
