const $ = (id) => document.getElementById(id);
const percent = (fraction) => `${(100 * fraction).toFixed(1)}\u00a0%`;
const SLIDER_REST = 150; // milliseconds without a move before the model is asked again
const DEFAULT_LEVELS = 32; // of 255, for models that were not trained against changes of single pixels

let model = null; // what GET /v1/model said
let key = "";
let picture = null; // what was chosen: { file, seen, original }; `seen` is null where this browser cannot decode it

// Asking the server

/** An answer of the server, as JSON. Throws an Error whose message is meant for people. */
async function ask(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server did not answer. It may be down, or the file too large for it.");
  });
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const wait = Number(response.headers.get("Retry-After"));
  const said = body?.error?.message ?? `the server answered with status ${response.status}.`;
  const message = said[0].toUpperCase() + said.slice(1);
  throw Object.assign(new Error(wait ? `${message} Try again in ${duration(wait)}.` : message), {
    status: response.status,
    wait,
  });
}

function duration(seconds) {
  if (seconds < 120) return `${seconds}\u00a0s`;
  if (seconds < 7200) return `${Math.ceil(seconds / 60)} minutes`;
  return `${Math.ceil(seconds / 3600)} hours`;
}

function showProblem(message) {
  $("alert").textContent = message;
  $("problem").classList.toggle("shown", Boolean(message));
  $("again").hidden = !message || !picture;
}

// What is served

/** Ask what is served; then ask it about the image, if one was chosen before the answer came. */
async function meet() {
  if ((await describe()) && picture) choose(picture.file);
}

async function describe() {
  try {
    offerModels((await ask("/v1/models")).models);
    showModel(await ask("/v1/model" + which()));
    return true;
  } catch (error) {
    if (error.status === 503) setTimeout(meet, 1000 * (error.wait || 1));
    if (error.status === 401) askForKey();
    if (error.status !== 401 || key) showProblem(error.message);
    $("model").textContent = error.message;
    return false;
  }
}

/** Where several are served the page names the one that is meant, and a person chooses. */
function offerModels(models) {
  const chosen = $("which").value;
  $("which").replaceChildren(...models.map(({ name, version }) => {
    const value = new URLSearchParams({ model: name, version }).toString();
    return element("option", { value, selected: value === chosen }, `${name}, version ${version}`);
  }));
  $("which-field").hidden = models.length < 2;
}

function which() {
  return $("which-field").hidden ? "" : `?${$("which").value}`;
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").setAttribute("aria-invalid", String(Boolean(key)));
}

function showModel(found) {
  model = found;
  showProblem("");
  $("key").removeAttribute("aria-invalid");
  const [height, width] = model.spec.image_size;
  $("model").textContent =
    `${model.name} · ${model.spec.network} · ${model.spec.num_classes} classes · ${width} × ${height} pixels`;
  $("preview").classList.toggle("few-pixels", Math.max(height, width) < 160);
  $("dummy").hidden = model.spec.fold === "none";
  $("no-dummy").hidden = model.spec.fold !== "none";
  $("dummy-usual").textContent = model.robustness_in_words.dummy_mass ?? "";
  scaleNoise(model.spec.threat_model);
  $("noise-report").textContent = model.spec.robustness
    ? "says how much of that the model withstood."
    : "says that nobody measured what it does to this model.";
  showReport();
}

function showReport() {
  const words = model.robustness_in_words;
  const measured = model.spec.robustness;
  $("warnings").replaceChildren(...words.warnings.map((text) => element("p", { className: "warning" }, text)));
  $("sentences").replaceChildren(...words.sentences.map((text) => element("p", {}, text)));
  $("figures").replaceChildren();
  if (measured) {
    $("figures").append(
      figure(percent(measured.clean_accuracy), `right on unchanged ${measured.split} images`),
      figure(percent(measured.worst_case_accuracy), "still right under every attack that was run"),
    );
    $("attack-rows").replaceChildren(
      ...measured.attacks.map((attack) => {
        const cells = [attack.examples, percent(attack.worst_case_accuracy)];
        const row = element("tr", {}, element("th", { scope: "row" }, attack.name));
        row.append(...cells.map((cell) => element("td", {}, String(cell))));
        return row;
      }),
    );
  }
  $("attacks").hidden = !measured;
  showFacts();
  $("report-waiting").hidden = true;
  $("report").hidden = false;
}

function figure(number, words) {
  const group = element("div", {}, element("dt", {}, words));
  group.append(element("dd", {}, number));
  return group;
}

function showFacts() {
  const spec = model.spec;
  const facts = {
    Network: `${spec.network}, ${spec.num_classes} classes, in ${spec.precision}`,
    "Trained against": `${spec.threat_model.norm} ${sizeText(spec.threat_model.eps)}`,
    Input: `${spec.image_size[1]} × ${spec.image_size[0]} pixels, ${spec.channels === 1 ? "greyscale" : "colour"}`,
    "Other sizes": model.resizing,
    "Runs on": model.provider,
    Weights: `SHA-256 ${spec.weights_digest}. It detects damage, not forgery.`,
  };
  $("facts").replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    $("facts").append(element("dt", {}, name), element("dd", {}, value));
  }
}

/** As the field writes sizes: a short decimal, else 8/255 where it is one of the 255 levels. */
function sizeText(size) {
  const decimal = String(Number(size.toPrecision(10)));
  const levels = Math.round(255 * size);
  return decimal.length > 5 && Math.abs(255 * size - levels) < 1e-6 ? `${levels}/255` : decimal;
}

/** The same size as the slider counts, where `sizeText` writes it as a decimal. */
function inLevels(size) {
  return sizeText(size).includes("/") ? "" : `, which is ${Number((255 * size).toFixed(1))}/255`;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The image

async function choose(file) {
  picture = { file, seen: null, original: null };
  const chosen = picture;
  asking?.abort();
  clearAnswer("Asking the model…");
  showProblem("");
  if (model) {
    const [height, width] = model.spec.image_size;
    try {
      const { pixels, original } = await decodePixels(file);
      const fitted = fitPixels(pixels, width, height);
      Object.assign(chosen, { seen: model.spec.channels === 1 ? greyPixels(fitted) : fitted, original });
    } catch {
      // Not an image for this browser; the server has the last word and says why.
    }
  }
  if (chosen !== picture) return;
  showPicture();
  predict();
}

/** The first image of a drop or a paste; says so where there is none. */
function chooseFrom(files, origin) {
  markSample(null);
  if (files.length) choose(files[0]);
  else showProblem(`There is no image file in what was ${origin}.`);
}

function showPicture() {
  const isShown = Boolean(picture?.seen);
  for (const id of ["preview", "caption", "noise-field"]) $(id).hidden = !isShown;
  if (!isShown) return;
  const level = noiseLevel();
  paintPixels($("preview"), level ? noisyPixels(picture.seen, level, model.spec.channels) : picture.seen);
  const [height, width] = model.spec.image_size;
  const [fileWidth, fileHeight] = picture.original;
  const sameSize = fileWidth === width && fileHeight === height;
  const how = sameSize ? "the image's own size" : `made from ${fileWidth} × ${fileHeight}: ${model.resizing}`;
  const sent = level
    ? "With noise, this picture is what is sent."
    : "The file itself is sent, and the server does the same to it.";
  $("caption").textContent = `${width} × ${height} pixels, ${how}. ${sent}`;
}

// Noise

const noiseLevel = () => Number($("noise").value);

/** From no noise to four times what the model was trained for, where that is a bound on single pixels. */
function scaleNoise({ norm, eps }) {
  const most = norm === "linf" ? Math.max(1, Math.min(255, Math.round(4 * 255 * eps))) : DEFAULT_LEVELS;
  $("noise").max = most;
  $("noise").step = most > 128 ? Math.max(1, Math.floor(most / 64)) : 1;
  const trained = norm === "linf" ? `The model was trained for at most ${sizeText(eps)}${inLevels(eps)}.` : "";
  $("noise-scale").textContent = `Up or down by this much, in every value of every pixel. ${trained}`;
  sayNoise();
}

function sayNoise() {
  const level = noiseLevel();
  $("noise-value").textContent = level ? `${level}/255` : "none";
  $("noise").setAttribute("aria-valuetext", level ? `${level} of 255` : "none");
}

// Predictions: one request at a time; of what was asked for meanwhile only the last counts

let wanted = 0;
let isAsking = false;
let asking = null; // of the request that is on its way

async function predict() {
  wanted += 1;
  if (isAsking) return;
  isAsking = true;
  let answered;
  do {
    answered = wanted;
    await predictOnce(picture, noiseLevel());
  } while (answered !== wanted);
  isAsking = false;
}

async function predictOnce(chosen, level) {
  asking = new AbortController();
  $("prediction").setAttribute("aria-busy", "true");
  try {
    const noisy = chosen.seen && level ? await pngOf(noisyPixels(chosen.seen, level, model.spec.channels)) : null;
    const form = new FormData();
    form.append("image", noisy ?? chosen.file, noisy ? "noise.png" : chosen.file.name);
    const started = performance.now();
    const body = await ask("/v1/predict" + which(), { method: "POST", body: form, signal: asking.signal });
    if (chosen === picture) showAnswer(body.predictions[0], performance.now() - started, noisy ? level : 0);
    // Somebody put another model in its place: what the page says of it is out of date.
    if (model && body.model.weights_digest !== model.spec.weights_digest) describe();
  } catch (error) {
    if (chosen !== picture || error.name === "AbortError") return;
    clearAnswer("No prediction for this image.");
    if (error.status === 401) askForKey();
    showProblem(error.message);
  } finally {
    $("prediction").removeAttribute("aria-busy");
  }
}

function clearAnswer(instead) {
  $("answer").hidden = true;
  $("headline").replaceChildren();
  $("waiting").textContent = instead;
  $("waiting").hidden = false;
}

function showAnswer(best, milliseconds, level) {
  showProblem("");
  const noise = level ? `, with noise of ${level}/255` : "";
  $("headline").replaceChildren(element("strong", {}, best.label), ` ${percent(best.confidence)} confidence${noise}`);
  $("bars").replaceChildren(...best.top_k.slice(0, 5).map(bar));
  $("dummy-meter").value = best.dummy_mass;
  $("dummy-meter").setAttribute("aria-valuetext", percent(best.dummy_mass));
  $("dummy-value").textContent = percent(best.dummy_mass);
  $("latency").textContent =
    `Answered in ${milliseconds.toFixed(0)}\u00a0ms, from sending the image to having the answer here.`;
  $("waiting").hidden = true;
  $("answer").hidden = false;
}

function bar({ label, confidence }) {
  const meter = element("meter", { value: confidence });
  meter.setAttribute("aria-hidden", "true"); // the number beside it says the same
  return element(
    "li",
    {},
    element("span", { className: "name" }, label),
    element("span", { className: "number" }, percent(confidence)),
    meter,
  );
}

// Samples

async function offerSamples() {
  const names = await ask("/samples").catch(() => []);
  $("sample-list").replaceChildren(...names.map(sampleButton));
  $("samples").hidden = !names.length;
}

function sampleButton(name) {
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

function markSample(chosen) {
  for (const button of $("sample-list").children) button.setAttribute("aria-pressed", String(button === chosen));
}

// Events

$("file").addEventListener("change", () => {
  if ($("file").files.length) chooseFrom($("file").files);
  $("file").value = ""; // so that the same file may be chosen again
});
$("which").addEventListener("change", meet);
$("again").addEventListener("click", () => choose(picture.file));

let resting = null;
$("noise").addEventListener("input", () => {
  sayNoise();
  showPicture();
  clearTimeout(resting);
  resting = setTimeout(predict, SLIDER_REST);
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  if (/^[\x21-\x7e]+$/.test(key)) meet();
  else showProblem("An API key is made of letters, digits and signs, without blanks.");
});

document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (event.target === $("key") && !files.length) return;
  event.preventDefault();
  chooseFrom(files, "pasted");
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
  chooseFrom(event.dataTransfer.files, "dropped");
});

meet();
offerSamples();
