/** The signal front end, as runtime/stft.py: centred STFT, its inverse, power-law compression. */

import { Fft } from "./fft";
import type { Signal } from "./manifest";

/** Periodic Hann window. */
export function hann(n: number): Float64Array {
  return Float64Array.from({ length: n }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / n));
}

/** Planes [channels, frames, bins] of a spectrum, one after the other. */
export interface Planes {
  data: Float32Array;
  frames: number;
}

/** Frames of a whole signal, reflected at both ends. */
export class Analysis {
  readonly nFrames: number;
  private readonly fft: Fft;
  private readonly window: Float64Array;
  private readonly re: Float64Array;
  private readonly im: Float64Array;
  /** Length with the zeros that a very short signal is extended with. */
  private readonly length: number;

  constructor(
    private readonly wav: Float32Array,
    private readonly signal: Signal,
    private readonly gain = 1, // samples are divided by it
  ) {
    if (wav.length === 0) throw new RangeError("an empty signal has no spectrum");
    this.length = Math.max(wav.length, signal.n_fft / 2 + 1);
    this.nFrames = 1 + Math.floor(this.length / signal.hop_length);
    this.fft = new Fft(signal.n_fft);
    this.window = hann(signal.n_fft);
    this.re = new Float64Array(signal.n_fft);
    this.im = new Float64Array(signal.n_fft);
  }

  private sample(at: number): number {
    const last = this.length - 1;
    const inside = at < 0 ? -at : at > last ? 2 * last - at : at;
    return inside < this.wav.length ? Math.fround(this.wav[inside] / this.gain) : 0;
  }

  /** Transform one frame into `re` and `im`; returns the largest sample under its window. */
  spectrum(frame: number): { re: Float64Array; im: Float64Array; peak: number } {
    const { n_fft, hop_length } = this.signal;
    let peak = 0;
    for (let i = 0; i < n_fft; i++) {
      const x = this.sample(frame * hop_length - n_fft / 2 + i);
      peak = Math.max(peak, Math.abs(x));
      this.re[i] = x * this.window[i];
    }
    this.im.fill(0);
    this.fft.run(this.re, this.im);
    return { re: this.re, im: this.im, peak };
  }

  /**
   * Write the compressed real part, imaginary part and magnitude of `count` frames from `first` on
   * into `out` from its frame `at` on; returns the peaks of the frames.
   */
  compress(out: Planes, at: number, first: number, count: number): Float32Array {
    const { n_fft, compress_factor: factor, compress_exponent: exponent } = this.signal;
    const nFreqs = n_fft / 2 + 1;
    const plane = out.frames * nFreqs;
    const peaks = new Float32Array(count);
    for (let m = 0; m < count; m++) {
      const { re, im, peak } = this.spectrum(first + m);
      peaks[m] = peak;
      for (let k = 0; k < nFreqs; k++) {
        const mag = Math.sqrt(re[k] ** 2 + im[k] ** 2);
        const place = (at + m) * nFreqs + k;
        const compressed = mag > 0 ? factor * mag ** exponent : 0;
        const gain = mag > 0 ? compressed / mag : 0;
        out.data[place] = re[k] * gain;
        out.data[plane + place] = im[k] * gain;
        out.data[2 * plane + place] = compressed;
      }
    }
    return peaks;
  }
}

/** The signal of compressed spectra that come one after the other. */
export class Synthesis {
  private readonly fft: Fft;
  private readonly window: Float64Array;
  private readonly sum: Float64Array; // the next n_fft samples
  private readonly norm: Float64Array;
  private readonly re: Float64Array;
  private readonly im: Float64Array;
  private skip: number; // samples that lie before the signal
  /** Largest magnitude of a bin so far. */
  largest = 0;

  constructor(private readonly signal: Signal) {
    const n = signal.n_fft;
    this.fft = new Fft(n);
    this.window = hann(n);
    this.sum = new Float64Array(n);
    this.norm = new Float64Array(n);
    this.re = new Float64Array(n);
    this.im = new Float64Array(n);
    this.skip = n / 2;
  }

  /** Add `count` frames from `first` on, each multiplied by its level; returns what is final. */
  push(spec: Planes, first: number, count: number, levels?: Float32Array): Float32Array {
    const { n_fft, hop_length: hop } = this.signal;
    const out = new Float32Array(count * hop);
    for (let m = 0; m < count; m++) {
      this.inverse(spec, first + m, levels ? levels[m] : 1);
      for (let i = 0; i < n_fft; i++) {
        this.sum[i] += (this.re[i] / n_fft) * this.window[i];
        this.norm[i] += this.window[i] ** 2;
      }
      for (let i = 0; i < hop; i++) out[m * hop + i] = this.ready(i);
      for (const x of [this.sum, this.norm]) {
        x.copyWithin(0, hop);
        x.fill(0, n_fft - hop);
      }
    }
    return this.skipped(out);
  }

  /** What the last windows still hold. */
  rest(): Float32Array {
    const n = this.signal.n_fft - this.signal.hop_length;
    return this.skipped(Float32Array.from({ length: n }, (_, i) => this.ready(i)));
  }

  private ready(i: number): number {
    return this.sum[i] / Math.max(this.norm[i], 1e-20);
  }

  private skipped(out: Float32Array): Float32Array {
    const n = Math.min(this.skip, out.length);
    this.skip -= n;
    return out.subarray(n);
  }

  private inverse(spec: Planes, frame: number, level: number): void {
    const { n_fft, compress_factor: factor, compress_exponent: exponent } = this.signal;
    const nFreqs = n_fft / 2 + 1;
    const plane = spec.frames * nFreqs;
    // |X| / mag = f^(-1/p) mag^(1/p - 1): no division by the magnitude, so 0 needs no guard.
    const scale = factor ** (-1 / exponent);
    for (let k = 0; k < nFreqs; k++) {
      const x = spec.data[frame * nFreqs + k];
      const y = spec.data[plane + frame * nFreqs + k];
      const mag = Math.sqrt(x * x + y * y);
      const gain = scale * mag ** (1 / exponent - 1);
      this.largest = Math.max(this.largest, mag * gain);
      this.re[k] = x * gain * level;
      this.im[k] = y * gain * level;
    }
    this.im[0] = this.im[n_fft / 2] = 0; // as NumPy: these two bins are real
    for (let k = 1; k < n_fft / 2; k++) {
      this.re[n_fft - k] = this.re[k];
      this.im[n_fft - k] = -this.im[k];
    }
    this.fft.run(this.im, this.re); // swapped: the inverse
  }
}
