// The same from a program, to be copied.

import { $ } from "./dom.js";
import { which } from "./server.js";
import { page } from "./state.js";

/** Commands for the model that is chosen. The key is never in them. */
export function showSnippets() {
  const address = `${location.origin}/v1/predict${which()}`;
  const name = page.picture?.file.name || "photo.jpg";
  const file = /^[\w.-]+$/.test(name) ? name : "photo.jpg"; // a name that needs quotes in no shell
  const key = page.key ? ' -H "Authorization: Bearer $DUCAT_KEY"' : "";
  $("curl-text").textContent = `curl${key} -F image=@${file} '${address}'`;
  const headers = page.key ? ', headers={"Authorization": f"Bearer {os.environ[\'DUCAT_KEY\']}"}' : "";
  $("python-text").textContent = [
    ...(page.key ? ["import os", ""] : []),
    "import httpx",
    "",
    `with open("${file}", "rb") as image:`,
    `    answer = httpx.post("${address}", files={"image": image}${headers})`,
    "answer.raise_for_status()",
    'print(answer.json()["predictions"][0]["label"])',
  ].join("\n");
}

/** Copy a command; where the browser does not allow it, select it. */
export async function copySnippet(button, source) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Selected: copy it with Ctrl+C";
  }
  setTimeout(() => (button.textContent = said), 2000);
}
