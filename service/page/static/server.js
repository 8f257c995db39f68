// Asking the server, and saying what went wrong.

import { $, duration } from "./dom.js";
import { page } from "./state.js";

/** An answer of the server, as JSON. Throws an Error whose message is meant for people, or any once its signal is aborted. */
export async function ask(path, options = {}) {
  const response = await send(path, options);
  const body = await response.json().catch(() => null);
  options.signal?.throwIfAborted();
  if (body === null) throw new Error("The server's answer cannot be read.");
  return body;
}

/** A response of 200. Throws as `ask` does. */
export async function send(path, options = {}) {
  const headers = page.key ? { Authorization: `Bearer ${page.key}` } : {};
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (options.signal?.aborted) throw error;
    throw new Error("The server did not answer. It may be down, or the file too large for it.");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wait = Number(response.headers.get("Retry-After"));
  const said = body?.error?.message ?? `the server answered with status ${response.status}.`;
  const message = said[0].toUpperCase() + said.slice(1);
  throw Object.assign(new Error(wait ? `${message} Try again in ${duration(wait)}.` : message), {
    status: response.status,
    wait,
  });
}

export function showProblem(message, canTryAgain = false) {
  $("alert").textContent = message;
  $("problem").classList.toggle("shown", Boolean(message));
  $("again").hidden = !canTryAgain;
}

export function askForKey() {
  $("key-form").hidden = false;
  $("key").setAttribute("aria-invalid", String(Boolean(page.key)));
}

/** The model that is meant, where several are served: as the query of an address. */
export function which() {
  return $("which-field").hidden ? "" : `?${$("which").value}`;
}

/** A form with one image for the server. */
export function formOf(file, name) {
  const form = new FormData();
  form.append("image", file, name);
  return form;
}
