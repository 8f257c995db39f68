// An attack on the chosen image, made by the server while the page looks on.

import { $ } from "./dom.js";
import { fromPixels, pngOf } from "./picture.js";
import { formOf, send, which } from "./server.js";
import { page } from "./state.js";
import { showTrio, trioAnswer } from "./trio.js";

let running = null;
const WHY = {
  fooled: "The answer changed.",
  queries: "The answer stayed: the search gave up.",
  time: "The answer stayed: the time was up.",
};

export async function attackLive() {
  if (running) {
    running.abort();
    return;
  }
  running = new AbortController();
  $("attack-live").textContent = "Stop the attack";
  $("attack-count").textContent = "Waiting for a turn…";
  try {
    const form = formOf(await pngOf(page.picture.seen), "image.png");
    const response = await send("/v1/attack" + which(), { method: "POST", body: form, signal: running.signal });
    let first = null;
    for await (const step of linesOf(response.body)) {
      first ??= step;
      $("attack-count").textContent =
        `${step.queries} questions asked; now ${step.label} with ${(100 * step.confidence).toFixed(1)}\u00a0%. ` +
        (step.stopped ? (WHY[step.stopped] ?? `Stopped: ${step.stopped}.`) : "");
      if (step.stopped) {
        const { spec } = page.model;
        showTrio(fromPixels(step.original, spec), fromPixels(step.attacked, spec));
        trioAnswer(step.before, step);
        const search = `a search of ${step.queries} questions, which saw answers only`;
        $("trio-caption").textContent =
          step.stopped === "fooled" ? `Found by ${search}.` : `Not fooled: the furthest that ${search}, came.`;
        for (const other of $("example-list").children) other.setAttribute("aria-pressed", "false");
      }
    }
  } catch (error) {
    $("attack-count").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  } finally {
    running = null;
    $("attack-live").textContent = "Attack the chosen image";
  }
}

/** The objects in a stream that has one on each line. */
async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}
