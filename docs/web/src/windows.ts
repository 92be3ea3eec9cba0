/** Cut a recording into overlapping windows and join them, as runtime/windows.py. */

/** Sizes in samples at the model's rate. */
export interface WindowSizes {
  window: number; // what the networks are given at a time; also the longest signal in one piece
  context: number; // thrown away at a cut
  fade: number; // cross-fade, centred at the cut
  least: number; // length of the last window of several
  reminder: number; // of the recording's loudest stretch, beside each window of several
}

export const SIZES: WindowSizes = {
  window: 1023 * 128,
  context: 64 * 128,
  fade: 16 * 128,
  least: 511 * 128,
  reminder: 128 * 128,
};

const STRIDE = 16 * 128; // the loudest stretch begins at a multiple of this

export interface Piece {
  start: number;
  stop: number;
  cut: number; // middle of the cross-fade to the next window; `stop` for the last
}

/** The windows of a recording of n samples. */
export function plan(n: number, hop: number, sizes: WindowSizes = SIZES): Piece[] {
  if (n <= sizes.window) return [{ start: 0, stop: n, cut: n }];
  const held = sizes.window - sizes.reminder;
  const step = held - 2 * sizes.context;
  const pieces: Piece[] = [];
  let start = 0;
  for (; n > start + held; start += step) {
    pieces.push({ start, stop: start + held, cut: start + held - sizes.context });
  }
  // The last one reaches back: a short window would have little to take its averages over.
  const back = Math.max(0, Math.ceil((n - Math.min(sizes.least, held)) / hop)) * hop;
  return [...pieces, { start: Math.min(start, back), stop: n, cut: n }];
}

/** First sample of the loudest stretch, or null in a recording that is shorter. */
export function loudest(wav: Float32Array, length: number): number | null {
  const energies: number[] = [];
  let found: number | null = null;
  let most = -1;
  for (let end = STRIDE; end <= wav.length; end += STRIDE) {
    let energy = 0;
    for (let i = end - STRIDE; i < end; i++) energy += wav[i] ** 2;
    energies.push(energy);
    if (energies.length > length / STRIDE) energies.shift();
    const sum = energies.reduce((a, b) => a + b, 0);
    if (energies.length === length / STRIDE && sum > most) {
      most = sum;
      found = end - length;
    }
  }
  return found;
}

/**
 * Process a recording window by window and join the pieces.
 *
 * @param process (samples, index of the first one) -> as many samples.
 * @param done Called with the number of samples that are final.
 */
export async function inWindows(
  wav: Float32Array,
  pieces: Piece[],
  fade: number,
  process: (wav: Float32Array, start: number) => Promise<Float32Array>,
  done: (samples: number) => void = () => {},
): Promise<Float32Array> {
  const result = new Float32Array(wav.length);
  const half = fade / 2;
  let emitted = 0;
  let tail: Float32Array | null = null; // the last window's side of the cross-fade
  for (const { start, stop, cut } of pieces) {
    const part = wav.subarray(start, stop);
    // Silence stays silence, whatever a network makes of it.
    const out = part.some((x) => x !== 0) ? await process(part, start) : new Float32Array(part.length);
    const last = cut === stop;
    const final = last ? stop : cut - half;
    result.set(out.subarray(emitted - start, final - start), emitted);
    if (tail) {
      for (let i = 0; i < fade; i++) {
        const ramp = (i + 0.5) / fade;
        // Both sides estimate the same speech, so amplitudes add: linear, not equal power.
        result[emitted + i] = tail[i] * (1 - ramp) + result[emitted + i] * ramp;
      }
    }
    tail = last ? null : out.slice(final - start, cut + half - start);
    emitted = final;
    done(emitted);
  }
  return result;
}
