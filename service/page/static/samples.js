// The operator's own sample images.

import { $, element } from "./dom.js";
import { start } from "./running.js";
import { ask, send, showProblem } from "./server.js";

export async function offerSamples(choose) {
  const names = await ask("/samples").catch(() => []);
  $("sample-list").replaceChildren(...names.map((name) => sampleButton(name, choose)));
  $("samples").hidden = !names.length;
}

function sampleButton(name, choose) {
  const path = `/samples/${encodeURIComponent(name)}`;
  const button = element(
    "button",
    { type: "button", className: "sample" },
    element("img", { src: path, alt: "", decoding: "async" }),
    element("span", {}, name.replace(/\.[^.]*$/, "").replaceAll(/[-_]+/g, " ")),
  );
  button.setAttribute("aria-pressed", "false");
  const image = button.firstChild;
  image.addEventListener("load", () => image.classList.toggle("few-pixels", image.naturalWidth < 160));
  button.addEventListener("click", async () => {
    const signal = start("sample");
    try {
      // Kept, so that the history knows it as the same image.
      button.file ??= new File([await (await send(path, { signal })).blob()], name);
    } catch {
      if (!signal.aborted) showProblem("The sample could not be loaded from the server.");
    }
    if (button.file && !signal.aborted) choose(button.file);
  });
  return button;
}

/** Mark the sample that is the chosen file. */
export function markSample(file) {
  for (const button of $("sample-list").children) button.setAttribute("aria-pressed", String(button.file === file));
}
