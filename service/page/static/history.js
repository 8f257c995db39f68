// What was asked in this visit. It is kept in the page, and gone when it is left.

import { isUnsure } from "./answer.js";
import { $, element, focusPrediction, percent } from "./dom.js";
import { paintPixels } from "./picture.js";
import { page } from "./state.js";

const MOST = 12;

/** Put an image and its answer in front of the others; `again` shows it once more. */
export function remember(picture, best, again) {
  const small = element("canvas", {});
  small.setAttribute("aria-hidden", "true");
  small.hidden = !picture.seen;
  if (picture.seen) paintPixels(small, picture.seen);
  const button = element(
    "button",
    { type: "button", className: "past" },
    small,
    element("span", { className: "past-name" }, picture.file.name || "pasted image"),
    element("span", {}, `${best.label}, ${percent(best.confidence)}${isUnsure(best, page.model?.spec) ? ", unsure" : ""}`),
    element("span", { className: "quiet" }, page.model ? page.model.name : ""),
  );
  button.addEventListener("click", () => {
    focusPrediction(); // this entry is replaced by a new one
    again();
  });
  const entry = element("li", {}, button);
  entry.pastFile = picture.file;
  for (const other of [...$("past-list").children]) {
    if (other.pastFile === picture.file) other.remove();
  }
  $("past-list").prepend(entry);
  while ($("past-list").children.length > MOST) $("past-list").lastChild.remove();
  $("past").hidden = false;
}
