// Several files at once: a table, and the same as CSV.

import { isUnsure } from "./answer.js";
import { $, bringIntoView, element, percent, save } from "./dom.js";
import { start } from "./running.js";
import { ask, askForKey, formOf, which } from "./server.js";
import { page } from "./state.js";

const MOST_FILES = 200;
const MOST_SECONDS = 30; // that a file waits for a server which is busy
let rows = []; // { name, label, confidence, dummy_mass } or { name, problem }

/** Ask one model about one file after the other, so that a bad file costs only its own row. */
export async function classifyAll(files, choose) {
  const signal = start("batch");
  const query = which();
  const spec = page.model?.spec;
  const model = query ? ` Model: ${$("which").selectedOptions[0].textContent}.` : "";
  const taken = [...files].slice(0, MOST_FILES);
  rows = [];
  $("batch-rows").replaceChildren();
  $("batch").hidden = false;
  $("batch-save").disabled = true;
  for (const file of taken) {
    $("batch-count").textContent = `${rows.length} of ${taken.length} files answered.${model}`;
    const row = await classify(file, query, signal);
    if (signal.aborted) return;
    rows.push(row);
    $("batch-rows").append(rowOf(row, spec, () => choose(file)));
    if (rows.length === 1) bringIntoView($("batch"), $("batch-rows").firstChild);
    if (row.status === 401) break;
  }
  const failed = rows.filter((row) => row.problem).length;
  const left = files.length - taken.length;
  $("batch-count").textContent =
    `${rows.length} files, ${failed ? `${failed} without an answer` : "all answered"}.${model}` +
    (left ? ` ${left} more were left out: at most ${MOST_FILES} at once.` : "");
  $("batch-save").disabled = false;
}

async function classify(file, query, signal, isSecond = false) {
  try {
    const body = await ask("/v1/predict" + query, { method: "POST", body: formOf(file, file.name), signal });
    return { name: file.name, ...body.predictions[0] };
  } catch (error) {
    if (error.wait && error.wait <= MOST_SECONDS && !isSecond) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.wait));
      return classify(file, query, signal, true);
    }
    if (error.status === 401) askForKey();
    return { name: file.name, problem: error.message, status: error.status };
  }
}

function massOf(row, spec) {
  if (row.answered_by) return row.answered_by === "robust" ? "robust tower" : "standard tower";
  return spec?.fold === "none" ? "none" : percent(row.dummy_mass);
}

function rowOf(row, spec, show) {
  const button = element("button", { type: "button", className: "plain" }, row.name);
  button.addEventListener("click", show);
  const made = element("tr", {}, element("th", { scope: "row" }, button));
  if (row.problem) {
    made.append(element("td", { colSpan: 3, className: "bad" }, row.problem));
    return made;
  }
  const sure = isUnsure(row, spec) ? element("span", { className: "unsure" }, "unsure") : "";
  made.append(
    element("td", {}, row.label, " ", sure),
    element("td", {}, percent(row.confidence)),
    element("td", {}, massOf(row, spec)),
  );
  return made;
}

export function saveCsv() {
  const lines = rows.map((row) =>
    [row.name, row.label ?? "", row.confidence ?? "", row.dummy_mass ?? "", row.problem ?? ""].map(cell).join(","),
  );
  save(["file,label,confidence,dummy_mass,error", ...lines, ""].join("\r\n"), "predictions.csv", "text/csv");
}

/** A cell of CSV (RFC 4180). A text that a spreadsheet would run as a formula gets a quote in front. */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
