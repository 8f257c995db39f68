// What every part of the page needs: elements, numbers as text, a file to save.

export const $ = (id) => document.getElementById(id);
export const percent = (fraction) => `${(100 * fraction).toFixed(1)}\u00a0%`;

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Scroll to a card where the part of it that has just been filled would be out of sight. */
export function bringIntoView(card, filled) {
  const { top, bottom } = filled.getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "start", behavior: isCalm ? "auto" : "smooth" });
}

export function duration(seconds) {
  if (seconds < 120) return `${seconds}\u00a0s`;
  if (seconds < 7200) return `${Math.ceil(seconds / 60)} minutes`;
  return `${Math.ceil(seconds / 3600)} hours`;
}

/** For the keyboard, where the element that had the focus goes away. */
export function focusPrediction() {
  $("prediction").focus({ preventScroll: true });
}

/** As the field writes sizes: a short decimal, else 8/255 where it is one of the 255 levels. */
export function sizeText(size) {
  const decimal = String(Number(size.toPrecision(10)));
  const levels = Math.round(255 * size);
  return decimal.length > 5 && Math.abs(255 * size - levels) < 1e-6 ? `${levels}/255` : decimal;
}

/** The same size as the slider counts, where `sizeText` writes it as a decimal. */
export function inLevels(size) {
  return sizeText(size).includes("/") ? "" : `, which is ${Number((255 * size).toFixed(1))}/255`;
}

/** Let the browser save a text as a file. */
export function save(text, name, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser reads it only after this
}
