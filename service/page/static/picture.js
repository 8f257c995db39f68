// What the server does to an image file, done again in the browser, so that noise can be added to what the model sees.

const MOST_PIXELS_ON_A_SIDE = 2048; // phones refuse larger canvases; larger images are made smaller first

/** The pixels of an image file as a person sees them: turned as EXIF says, laid over white. */
export async function decodePixels(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const shrink = Math.min(1, MOST_PIXELS_ON_A_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * shrink));
  canvas.height = Math.max(1, Math.round(bitmap.height * shrink));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const original = [bitmap.width, bitmap.height];
  bitmap.close();
  return { pixels: context.getImageData(0, 0, canvas.width, canvas.height), original };
}

/** Resized on the shorter side and cropped at the centre, by the antialiased bilinear filter that the server uses. */
export function fitPixels(image, width, height) {
  if (image.width === width && image.height === height) return image;
  const wide = image.width / image.height >= width / height;
  const cropWidth = wide ? (image.height * width) / height : image.width;
  const cropHeight = wide ? image.height : (image.width * height) / width;
  const columns = filterTaps(image.width, (image.width - cropWidth) / 2, cropWidth, width);
  const rows = filterTaps(image.height, (image.height - cropHeight) / 2, cropHeight, height);
  const narrow = new ImageData(width, image.height);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < width; x++) {
      sumTaps(image.data, 4 * y * image.width, 4, columns[x], narrow.data, 4 * (y * width + x));
    }
  }
  const result = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      sumTaps(narrow.data, 4 * x, 4 * width, rows[y], result.data, 4 * (y * width + x));
    }
  }
  return result;
}

/** For every target pixel of one axis: the first source pixel that counts, and the weights from there on. */
function filterTaps(sourceSize, start, length, targetSize) {
  const scale = length / targetSize;
  const reach = Math.max(scale, 1); // the triangle is as wide as what one target pixel covers
  return Array.from({ length: targetSize }, (_, index) => {
    const centre = start + (index + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(sourceSize, Math.floor(centre + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(Math.max(0, 1 - Math.abs((x + 0.5 - centre) / reach)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

function sumTaps(source, offset, stride, taps, target, at) {
  for (let channel = 0; channel < 4; channel++) {
    let sum = 0;
    for (let i = 0; i < taps.weights.length; i++) {
      sum += taps.weights[i] * source[offset + (taps.first + i) * stride + channel];
    }
    target[at + channel] = sum; // a clamped array rounds
  }
}

/** Every pixel as its ITU-R 601 luma, for models of one channel. */
export function greyPixels(image) {
  const result = new ImageData(image.width, image.height);
  for (let at = 0; at < image.data.length; at += 4) {
    const [red, green, blue] = image.data.subarray(at, at + 3);
    result.data.fill(0.299 * red + 0.587 * green + 0.114 * blue, at, at + 3);
    result.data[at + 3] = 255;
  }
  return result;
}

/** Every value moved up or down by `level` (of 255), by a coin that falls the same way every time. */
export function noisyPixels(image, level, channels) {
  const result = new ImageData(new Uint8ClampedArray(image.data), image.width, image.height);
  const coin = seededCoin(1);
  for (let at = 0; at < result.data.length; at += 4) {
    let sign = coin();
    for (let channel = 0; channel < 3; channel++) {
      if (channel > 0 && channels > 1) sign = coin();
      result.data[at + channel] += sign * level; // a clamped array stays within 0 and 255
    }
  }
  return result;
}

/** +1 or -1 from the top bit of Marsaglia's xorshift generator. */
function seededCoin(seed) {
  let state = seed * 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state < 0 ? -1 : 1;
  };
}

export function paintPixels(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A PNG file of these pixels, which loses nothing. */
export function pngOf(image) {
  const canvas = document.createElement("canvas");
  paintPixels(canvas, image);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("This browser cannot write a PNG."))), "image/png");
  });
}

/** An image whose pixels came as base64 of uint8 [H, W, channels]. */
export function fromPixels(text, { image_size: [height, width], channels }) {
  const values = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * pixel + channel] = values[channels * pixel + (channels === 1 ? 0 : channel)];
    }
    image.data[4 * pixel + 3] = 255;
  }
  return image;
}

/** What changed, that many times larger, around middle grey. */
export function differenceOf(before, after, times) {
  const image = new ImageData(before.width, before.height);
  for (let at = 0; at < image.data.length; at++) {
    image.data[at] = at % 4 === 3 ? 255 : 128 + times * (after.data[at] - before.data[at]); // a clamped array
  }
  return image;
}
