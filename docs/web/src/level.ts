/** The level that a causal model's input is divided by, as runtime/level.py. */

import type { Signal } from "./manifest";

const RELEASE_DB_S = 1;
const LEAST = 10 ** (-60 / 20);

/** l_t = max(p_t, r l_(t-1), l_min), p_t the largest sample under frame t's window. */
export class LevelTracker {
  private level = 0;
  private readonly release: number;

  constructor(signal: Signal) {
    this.release = 10 ** ((-RELEASE_DB_S * signal.hop_length) / (20 * signal.sample_rate));
  }

  push(peaks: Float32Array): Float32Array {
    return peaks.map((peak) => {
      this.level = Math.max(peak, this.release * this.level, LEAST);
      return this.level;
    });
  }
}
