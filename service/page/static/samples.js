// The operator's own sample images.

import { $, element } from "./dom.js";
import { ask, showProblem } from "./server.js";

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
    markSample(button);
    try {
      const response = await fetch(path);
      if (!response.ok) throw new Error();
      choose(new File([await response.blob()], name));
    } catch {
      showProblem("The sample could not be loaded from the server.");
    }
  });
  return button;
}

export function markSample(chosen) {
  for (const button of $("sample-list").children) button.setAttribute("aria-pressed", String(button === chosen));
}
