/** A phase that suits its magnitude, as runtime/phase.py (Griffin and Lim). */

import type { Signal } from "./manifest";
import { Analysis, Synthesis, type Planes } from "./stft";

/** Waveform of `nFrames` compressed frames from `first` on, and the largest bin on the way. */
export function toWaveform(
  clean: Planes,
  first: number,
  nFrames: number,
  length: number,
  signal: Signal,
  rounds: number,
): { wav: Float32Array; largest: number } {
  const found = inverse(clean, first, nFrames, length, signal);
  if (!rounds) return found;
  const nFreqs = signal.n_fft / 2 + 1;
  const [bins, plane, from] = [nFrames, clean.frames, first].map((frames) => frames * nFreqs);
  const magnitude = new Float32Array(bins);
  for (let i = 0; i < bins; i++) {
    magnitude[i] = Math.hypot(clean.data[from + i], clean.data[plane + from + i]);
  }
  const turned: Planes = { data: new Float32Array(3 * bins), frames: nFrames };
  let { wav } = found;
  for (let round = 0; round < rounds; round++) {
    new Analysis(wav, signal).compress(turned, 0, 0, nFrames);
    for (let i = 0; i < bins; i++) {
      const size = turned.data[2 * bins + i];
      const gain = size > 0 ? magnitude[i] / size : 0; // where there is nothing, nothing is put
      turned.data[i] *= gain;
      turned.data[bins + i] *= gain;
    }
    ({ wav } = inverse(turned, 0, nFrames, length, signal));
  }
  return { wav, largest: found.largest };
}

function inverse(spec: Planes, first: number, nFrames: number, length: number, signal: Signal) {
  const synthesis = new Synthesis(signal);
  const wav = new Float32Array(length);
  const body = synthesis.push(spec, first, nFrames).subarray(0, length);
  wav.set(body);
  wav.set(synthesis.rest().subarray(0, length - body.length), body.length);
  return { wav, largest: synthesis.largest };
}
