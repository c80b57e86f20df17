// Decode image files to the same pixels as `finetune predict`, or refuse them with a reason.
//
// PNG files are decoded here by the rules of finetune/data/decode.py, because a canvas holds 8 bits premultiplied by alpha and so
// loses values of 16-bit and of transparent images. The browser decodes the other formats, without colour management and over
// white.

const text = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
const beginning = (bytes) => new TextDecoder("latin1").decode(bytes.subarray(0, 1 << 16));

export class Refused extends Error {}

/** Decode a file.
 *  @returns {Promise<{data: Uint8Array, width: number, height: number, notes: string[]}>} pixels of shape height x width x channels */
export async function readImage(file, { channels, maxPixels, longestSide, highDepth, reducedFrom }) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new Refused("The file is empty.");
  const kind = sniff(bytes);
  if (kind === "PNG") {
    const png = readPng(bytes);
    checkSize(png.width, png.height, { maxPixels, longestSide });
    // a damaged profile is ignored, as Pillow does
    const profile = png.chunks.iCCP ? await inflate([profileOf(png.chunks.iCCP)], LONGEST_PROFILE).catch(() => null) : null;
    if (!profile || isSrgb(profile)) return fromPng(png, { channels, highDepth });
    if (png.depth === 16) {
      const notes = ["Its colour profile is not followed, because browsers keep 8 bits: the answer may differ from Python's."];
      const read = await fromPng(png, { channels, highDepth });
      return { ...read, notes: [...notes, ...read.notes] };
    }
  }
  let profiled = false;
  const notes = [];
  if (kind === "JPEG") {
    const header = readJpeg(bytes);
    checkSize(header.width, header.height, { maxPixels, longestSide });
    if (header.components === 4) throw new Refused("It is a CMYK image, which browsers convert in ways of their own.");
    if (header.precision !== 8) throw new Refused(`It has ${header.precision} bits per channel; browsers read 8.`);
    if (!header.ends) throw new Refused("It is damaged or cut short.");
    if (Math.min(header.width, header.height) >= reducedFrom) {
      notes.push("It is read whole here; finetune predict reads so large a JPEG at a reduced scale and may answer a little differently.");
    }
    profiled = header.profile !== null && !isSrgb(header.profile);
  } else {
    profiled = kind === "PNG" || hasProfile(kind, bytes);
  }
  if (profiled) notes.push("Its colour profile was followed by the browser: the answer may differ a little from Python's.");
  return { ...(await fromBrowser(file, { channels, maxPixels, longestSide, profiled })), notes };
}

function sniff(bytes) {
  const four = text(bytes, 0, 4);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return "JPEG";
  if (four === "\x89PNG") return "PNG";
  if (four === "GIF8") return "GIF";
  if (four === "RIFF" && text(bytes, 8, 4) === "WEBP") return "WebP";
  if (four.startsWith("BM")) return "BMP";
  if (four === "II*\0" || four === "MM\0*") throw new Refused("Browsers do not read TIFF. Use finetune predict.");
  if (text(bytes, 4, 8) === "ftypavif") return "AVIF";
  throw new Refused("It is not an image of a kind that this page reads: JPEG, PNG, WebP, GIF, BMP, AVIF.");
}

function checkSize(width, height, { maxPixels, longestSide }) {
  if (!width || !height) throw new Refused(`It claims ${width} x ${height} pixels.`);
  if (width * height > maxPixels) {
    throw new Refused(`It claims ${width} x ${height} pixels, more than the ${maxPixels} that the model was trained with.`);
  }
  if (longestSide && Math.max(width, height) > longestSide) {
    throw new Refused(`It claims ${width} x ${height} pixels. A side of more than ${longestSide} does not fit into a browser's memory.`);
  }
}

/** Whether a profile's curves and primaries are those of sRGB, whatever its name; true where it cannot be read, as in Python. */
function isSrgb(profile) {
  try {
    const view = new DataView(profile.buffer, profile.byteOffset, profile.byteLength);
    const tags = {};
    for (let tag = 0; tag < view.getUint32(128); tag++) tags[text(profile, 132 + 12 * tag, 4)] = view.getUint32(136 + 12 * tag);
    const space = text(profile, 16, 4);
    if (space === "GRAY") return isSrgbCurve(view, tags.kTRC);
    if (space !== "RGB " || "A2B0" in tags) return false;
    const primaries = Object.entries(PRIMARIES).every(([name, values]) =>
      values.every((value, k) => Math.abs(view.getInt32(tags[name] + 8 + 4 * k) / 65536 - value) < 0.004),
    );
    return primaries && ["rTRC", "gTRC", "bTRC"].every((name) => isSrgbCurve(view, tags[name]));
  } catch {
    return true;
  }
}

// of sRGB, adapted to D50, as profiles hold them
const PRIMARIES = { rXYZ: [0.4361, 0.2225, 0.0139], gXYZ: [0.3851, 0.7169, 0.0971], bXYZ: [0.1431, 0.0606, 0.7141] };

/** Whether a curve of a profile (ICC.1, curveType and parametricCurveType) differs from sRGB's by at most two of 256 values. */
function isSrgbCurve(view, at) {
  const kind = view.getUint32(at);
  let curve;
  if (kind === 0x63757276) {
    const count = view.getUint32(at + 8);
    const entry = (number) => view.getUint16(at + 12 + 2 * number) / 65535;
    if (count === 0) curve = (x) => x;
    else if (count === 1) curve = (x) => x ** (view.getUint16(at + 12) / 256);
    else {
      curve = (x) => {
        const low = Math.min(Math.floor(x * (count - 1)), count - 2);
        return entry(low) + (entry(low + 1) - entry(low)) * (x * (count - 1) - low);
      };
    }
  } else {
    if (kind !== 0x70617261) return false;
    const form = view.getUint16(at + 8);
    const [g, a = 1, b = 0, c = 0, d = 0, e = 0, f = 0] = Array.from({ length: [1, 3, 4, 5, 7][form] }, (_, k) => view.getInt32(at + 12 + 4 * k) / 65536);
    if (form === 0) curve = (x) => x ** g;
    else if (form <= 2) curve = (x) => (x >= -b / a ? (a * x + b) ** g : 0) + c;
    else curve = (x) => (x >= d ? (a * x + b) ** g + e : c * x + f);
  }
  const encoded = (y) => (y <= 0.0031308 ? 12.92 * y : 1.055 * y ** (1 / 2.4) - 0.055);
  for (let level = 0; level < 256; level++) if (Math.abs(255 * encoded(curve(level / 255)) - level) > 2) return false;
  return true;
}

function hasProfile(kind, bytes) {
  // the property of an AVIF file that holds an ICC profile
  if (kind === "AVIF") return /colr(prof|rICC)/.test(beginning(bytes));
  return kind === "WebP" && text(bytes, 12, 4) === "VP8X" && (bytes[20] & 0x20) !== 0;
}

// most bytes of a profile that are read
const LONGEST_PROFILE = 1 << 20;

/** Decode with the browser, over white. */
async function fromBrowser(file, { channels, maxPixels, longestSide, profiled }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      premultiplyAlpha: "none",
      colorSpaceConversion: profiled ? "default" : "none",
      imageOrientation: "from-image",
    });
  } catch {
    throw new Refused("It is damaged, or this browser does not read it.");
  }
  const { width, height } = bitmap;
  checkSize(width, height, { maxPixels, longestSide });
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  let pixels;
  try {
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    pixels = context.getImageData(0, 0, width, height).data;
  } catch {
    throw new Refused(`${width} x ${height} pixels are more than this browser can hold.`);
  } finally {
    bitmap.close();
  }
  return { data: toChannels(pixels, channels), width, height };
}

/** Return whether the canvas gives back the pixels that were drawn: some browsers alter them against fingerprinting. */
export function canvasIsExact() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const written = context.createImageData(16, 16);
  for (let at = 0; at < written.data.length; at++) written.data[at] = at % 4 === 3 ? 255 : (at * 37) % 256;
  context.putImageData(written, 0, 0);
  const read = context.getImageData(0, 0, 16, 16).data;
  return read.every((value, at) => value === written.data[at]);
}

/** Convert opaque RGBA to grey, by the luma of ITU-R BT.601 as Pillow rounds it, or to RGB. */
function toChannels(rgba, channels) {
  const count = rgba.length / 4;
  const data = new Uint8Array(count * channels);
  for (let at = 0; at < count; at++) {
    const [red, green, blue] = [rgba[4 * at], rgba[4 * at + 1], rgba[4 * at + 2]];
    if (channels === 1) {
      data[at] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      data[3 * at] = red;
      data[3 * at + 1] = green;
      data[3 * at + 2] = blue;
    }
  }
  return data;
}

/** Return the fields of a JPEG header. */
function readJpeg(bytes) {
  const header = { width: 0, height: 0, components: 0, precision: 8, profile: null, ends: false };
  const parts = [];
  for (let at = 2; at + 4 <= bytes.length; ) {
    if (bytes[at] !== 0xff) break;
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at += 1;
      continue;
    }
    const length = (bytes[at + 2] << 8) | bytes[at + 3];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      header.precision = bytes[at + 4];
      header.height = (bytes[at + 5] << 8) | bytes[at + 6];
      header.width = (bytes[at + 7] << 8) | bytes[at + 8];
      header.components = bytes[at + 9];
    }
    if (marker === 0xe2 && text(bytes, at + 4, 11) === "ICC_PROFILE") parts.push(bytes.subarray(at + 18, at + 2 + length));
    if (marker === 0xda) {
      for (let end = bytes.length - 2; end > at && !header.ends; end--) header.ends = bytes[end] === 0xff && bytes[end + 1] === 0xd9;
      break;
    }
    at += 2 + length;
  }
  if (parts.length) header.profile = parts[0];
  return header;
}

// PNG: W3C recommendation, third edition

// samples per pixel by colour type
const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
// passes of an interlaced image (Adam7): left, top, step across, step down
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/** Return the header and the chunks of a PNG file. */
function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const png = { chunks: {}, parts: [] };
  let ended = false;
  for (let at = 8; at + 12 <= bytes.length && !ended; ) {
    const length = view.getUint32(at);
    const name = text(bytes, at + 4, 4);
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (body.length < length) break;
    if (name.endsWith("Xt") && turnsByText(body)) png.turnsByText = true;
    if (name === "IDAT") png.parts.push(body);
    else if (!(name in png.chunks)) png.chunks[name] = body;
    ended = name === "IEND";
    at += 12 + length;
  }
  const head = png.chunks.IHDR;
  if (!head || !png.parts.length) throw new Refused("It is damaged or cut short.");
  png.width = new DataView(head.buffer, head.byteOffset).getUint32(0);
  png.height = new DataView(head.buffer, head.byteOffset).getUint32(4);
  [png.depth, png.type, , , png.interlaced] = head.subarray(8);
  if (!(png.type in SAMPLES)) throw new Refused("It is damaged or cut short.");
  return png;
}

/** Whether a text chunk states an orientation, which Python follows where there is no eXIf chunk. */
function turnsByText(body) {
  const start = beginning(body);
  const stated = /tiff:Orientation(?:="|>)(\d)/.exec(start);
  return start.startsWith("Raw profile type exif") || (stated !== null && stated[1] !== "1");
}

/** Return the compressed profile of an iCCP chunk, which follows its name. */
function profileOf(chunk) {
  return chunk.subarray(chunk.indexOf(0) + 2);
}

/** Decompress at most so many bytes: a few kilobytes can expand to any number. */
async function inflate(parts, maxBytes) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const whole = new Uint8Array(maxBytes);
  let filled = 0;
  try {
    while (filled < maxBytes) {
      const { done, value } = await reader.read();
      if (done) break;
      whole.set(value.subarray(0, maxBytes - filled), filled);
      filled += Math.min(value.length, maxBytes - filled);
    }
  } catch {
    throw new Refused("It is damaged or cut short.");
  }
  if (filled === maxBytes) await reader.cancel().catch(() => {});
  return whole.subarray(0, filled);
}

/** Return the bytes of all rows, each with its filter type. */
function rawLength({ width, height, depth, type, interlaced }) {
  let length = 0;
  for (const [left, top, across, down] of interlaced ? PASSES : [[0, 0, 1, 1]]) {
    const columns = Math.ceil((width - left) / across);
    const rows = Math.ceil((height - top) / down);
    if (columns > 0 && rows > 0) length += rows * (1 + Math.ceil((columns * SAMPLES[type] * depth) / 8));
  }
  return length;
}

async function fromPng(png, { channels, highDepth }) {
  const samples = unpack(png, await inflate(png.parts, rawLength(png)));
  const upright = applyOrientation(toRgba(png, samples, highDepth), png.width, png.height, orientation(png.chunks.eXIf));
  const turned = "Its orientation stands in a text that this page does not read: it may lie on its side here, and not in Python.";
  const notes = png.turnsByText && !png.chunks.eXIf ? [turned] : [];
  return { data: toChannels(upright.rgba, channels), width: upright.width, height: upright.height, notes };
}

/** Undo the filters, and return all samples at the file's own depth. */
function unpack(png, raw) {
  const { width, height, depth, type } = png;
  const perPixel = SAMPLES[type];
  const all = depth === 16 ? new Uint16Array(width * height * perPixel) : new Uint8Array(width * height * perPixel);
  const step = Math.max(1, (perPixel * depth) >> 3);
  let from = 0;
  for (const [left, top, across, down] of png.interlaced ? PASSES : [[0, 0, 1, 1]]) {
    const columns = Math.ceil((width - left) / across);
    const rows = Math.ceil((height - top) / down);
    if (columns <= 0 || rows <= 0) continue;
    const size = Math.ceil((columns * perPixel * depth) / 8);
    // filters are undone in place, so that an image of very many short rows needs no array for each
    let above = new Uint8Array(size);
    for (let row = 0; row < rows; row++, from += size + 1) {
      const line = raw.subarray(from + 1, from + 1 + size);
      if (line.length < size) throw new Refused("It is damaged or cut short.");
      unfilter(raw[from], line, above, step);
      above = line;
      for (let column = 0; column < columns; column++) {
        const to = ((top + row * down) * width + left + column * across) * perPixel;
        for (let k = 0; k < perPixel; k++) all[to + k] = sample(line, column * perPixel + k, depth);
      }
    }
  }
  return all;
}

function sample(line, at, depth) {
  if (depth === 8) return line[at];
  if (depth === 16) return (line[2 * at] << 8) | line[2 * at + 1];
  const bit = at * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

function unfilter(filter, line, above, step) {
  for (let at = 0; at < line.length; at++) {
    const left = at >= step ? line[at - step] : 0;
    const up = above[at];
    const corner = at >= step ? above[at - step] : 0;
    if (filter === 1) line[at] += left;
    else if (filter === 2) line[at] += up;
    else if (filter === 3) line[at] += (left + up) >> 1;
    else if (filter === 4) line[at] += paeth(left, up, corner);
    else if (filter !== 0) throw new Refused("It is damaged or cut short.");
  }
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

/** Return 8 bits per channel, composited over white. */
function toRgba(png, samples, highDepth) {
  const { depth, type, chunks } = png;
  const perPixel = SAMPLES[type];
  const count = png.width * png.height;
  const rgba = new Uint8Array(4 * count);
  const transparent = chunks.tRNS;
  const narrow = highDepth === "stretch" || (Array.isArray(highDepth) && (highDepth[0] !== 0 || highDepth[1] !== 65535));
  const deep = depth === 16 && (type === 0 || narrow) ? scaled(samples, perPixel, highDepth) : null;
  // grey of fewer than 8 bits is scaled to the full range; 16-bit colour that uses all bits keeps its upper 8
  const level = depth === 16 ? (v) => v >> 8 : type === 3 ? (v) => v : (v) => (v * 255) / ((1 << depth) - 1);
  // Pillow keeps the upper 8 bits of the transparent level too
  const transparentAt = depth === 16 ? [0, 2, 4] : [1, 3, 5];
  for (let at = 0; at < count; at++) {
    const from = at * perPixel;
    let red, green, blue, alpha = 255;
    if (deep) {
      [red, green, blue] = perPixel <= 2 ? Array(3).fill(deep[from]) : deep.subarray(from, from + 3);
      if (perPixel % 2 === 0) alpha = deep[from + perPixel - 1];
      else if (transparent && isTransparent(samples, from, perPixel, transparent)) alpha = 0;
    } else if (type === 3) {
      const entry = samples[from];
      [red, green, blue] = chunks.PLTE.subarray(3 * entry, 3 * entry + 3);
      if (transparent && entry < transparent.length) alpha = transparent[entry];
    } else if (perPixel <= 2) {
      red = green = blue = level(samples[from]);
      if (perPixel === 2) alpha = level(samples[from + 1]);
      else if (transparent && samples[from] === ((transparent[0] << 8) | transparent[1])) alpha = 0;
    } else {
      [red, green, blue] = [level(samples[from]), level(samples[from + 1]), level(samples[from + 2])];
      if (perPixel === 4) alpha = level(samples[from + 3]);
      else if (transparent && [red, green, blue].every((value, k) => value === transparent[transparentAt[k]])) alpha = 0;
    }
    rgba[4 * at] = overWhite(red, alpha);
    rgba[4 * at + 1] = overWhite(green, alpha);
    rgba[4 * at + 2] = overWhite(blue, alpha);
    rgba[4 * at + 3] = 255;
  }
  return rgba;
}

/** Composite over opaque white, as Pillow does with seven bits of precision. */
function overWhite(value, alpha) {
  if (alpha === 255) return value;
  const sum = (value * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7);
  return ((sum >> 8) + sum) >> 8 >> 7;
}

function isTransparent(samples, from, perPixel, transparent) {
  for (let k = 0; k < perPixel; k++) if (samples[from + k] !== ((transparent[2 * k] << 8) | transparent[2 * k + 1])) return false;
  return true;
}

/**
 * Scale 16 bits to 8 from the whole range, from that of the training images, or from the image's own minimum to maximum.
 * Opacity, the last of two or four samples, has the whole range.
 */
function scaled(samples, perPixel, highDepth) {
  const opacity = (at) => perPixel % 2 === 0 && at % perPixel === perPixel - 1;
  let [low, high] = Array.isArray(highDepth) ? highDepth : [0, 65535];
  if (highDepth === "stretch") {
    low = samples.reduce((a, b, at) => (opacity(at) ? a : Math.min(a, b)), 65535);
    high = samples.reduce((a, b, at) => (opacity(at) ? a : Math.max(a, b)), 0);
  }
  const fill = (value, from, to) => (to > from ? Math.floor(((Math.min(Math.max(value, from), to) - from) * 255) / (to - from) + 0.5) : 0);
  return Uint8Array.from(samples, (value, at) => (opacity(at) ? fill(value, 0, 65535) : fill(value, low, high)));
}

/** Return the orientation in an EXIF block (TIFF); 1 if it has none. */
function orientation(exif) {
  if (!exif || exif.length < 8) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = text(exif, 0, 2) === "II";
  const table = view.getUint32(4, little);
  if (table + 2 > exif.length) return 1;
  const entries = view.getUint16(table, little);
  for (let entry = 0; entry < entries && table + 14 + 12 * entry <= exif.length; entry++) {
    const at = table + 2 + 12 * entry;
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 1;
}

/** Turn and mirror the pixels by their EXIF orientation. */
function applyOrientation(rgba, width, height, orientation) {
  if (orientation < 2 || orientation > 8) return { rgba, width, height };
  const swapped = orientation > 4;
  const [wide, high] = swapped ? [height, width] : [width, height];
  const fromRight = [2, 3, 7, 8].includes(orientation);
  const fromBelow = [3, 4, 6, 7].includes(orientation);
  const turned = new Uint8Array(rgba.length);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const [column, row] = swapped ? [y, x] : [x, y];
      const from = (fromBelow ? height - 1 - row : row) * width + (fromRight ? width - 1 - column : column);
      turned.set(rgba.subarray(4 * from, 4 * from + 4), 4 * (y * wide + x));
    }
  }
  return { rgba: turned, width: wide, height: high };
}
