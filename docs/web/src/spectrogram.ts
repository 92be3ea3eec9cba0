/** Spectrograms, drawn column by column from the same transform as the networks'. */

import type { Signal } from "./manifest";
import { Analysis } from "./stft";

const RANGE_DB = 80;
const FRAMES_A_COLUMN = 3; // at most: the mean of their powers
// Dark to light, even steps of lightness.
const COLOURS = [
  [0, 0, 4],
  [59, 15, 112],
  [140, 41, 129],
  [222, 73, 104],
  [254, 159, 109],
  [252, 253, 191],
];

function colour(x: number): number[] {
  const at = Math.max(0, Math.min(1, x)) * (COLOURS.length - 1);
  const i = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[i].map((low, c) => low + (COLOURS[i + 1][c] - low) * (at - i));
}

const TABLE = Array.from({ length: 256 }, (_, i) => colour(i / 255));

/** Draw one; returns the loudest power, which is `loudest` if that was given. */
export function draw(canvas: HTMLCanvasElement, wav: Float32Array, signal: Signal, loudest = 0): number {
  const { width, height } = canvas;
  const analysis = new Analysis(wav, signal);
  const powers = new Float32Array(width * height);
  let most = 1e-12;
  for (let column = 0; column < width; column++) {
    const first = Math.floor((column * analysis.nFrames) / width);
    const end = Math.max(first + 1, Math.floor(((column + 1) * analysis.nFrames) / width));
    const count = Math.min(FRAMES_A_COLUMN, end - first);
    for (let i = 0; i < count; i++) {
      const { re, im } = analysis.spectrum(first + Math.floor((i * (end - first)) / count));
      for (let k = 0; k < height; k++) {
        powers[k * width + column] += (re[k] ** 2 + im[k] ** 2) / count;
      }
    }
  }
  for (const power of powers) most = Math.max(most, power);
  const top = loudest || most;
  const context = canvas.getContext("2d");
  if (!context) return top;
  const image = context.createImageData(width, height);
  for (let k = 0; k < height; k++) {
    for (let column = 0; column < width; column++) {
      const db = 10 * Math.log10(Math.max(powers[k * width + column] / top, 1e-12));
      const [r, g, b] = TABLE[Math.round(255 * Math.max(0, Math.min(1, 1 + db / RANGE_DB)))];
      image.data.set([r, g, b, 255], 4 * ((height - 1 - k) * width + column));
    }
  }
  context.putImageData(image, 0, 0);
  return top;
}
