/** Waveform in, enhanced waveform out: what runtime/enhancer.py does, for one channel. */

import { LevelTracker } from "./level";
import type { Manifest } from "./manifest";
import { frameNoise } from "./noise";
import { toWaveform } from "./phase";
import { sample, type Networks, type Sampler, type States } from "./sampler";
import { initialState, samplerSteps } from "./schedule";
import { Analysis, Synthesis, type Planes } from "./stft";
import { inWindows, loudest, plan, SIZES, type WindowSizes } from "./windows";

export interface Settings {
  steps: number;
  seed: bigint;
  sizes?: WindowSizes;
}

type Done = (fraction: number) => void;

const FRAME_MULTIPLE = 4; // of what the graphs take
const MIN_FRAMES = 32;
const GROUP_FRAMES = 256; // of a causal model at a time
const OFFSET_SHARE = 0.02; // of the peak: a mean above it is an offset in a recording of a second or more
const MAX_BIN = 1e8; // of an output spectrum; a full-scale sine has 128

/** Enhance one channel at the model's rate. */
export async function enhance(
  wav: Float32Array,
  manifest: Manifest,
  networks: Networks,
  settings: Settings,
  done: Done = () => {},
): Promise<Float32Array> {
  const sampler: Sampler = {
    networks,
    start: initialState(manifest),
    steps: samplerSteps(manifest, settings.steps),
    alpha: manifest.sampler.alpha,
  };
  return manifest.causal
    ? enhanceCausal(wav, manifest, sampler, settings, done)
    : enhanceWindows(wav, manifest, sampler, settings, done);
}

async function enhanceWindows(
  wav: Float32Array,
  { signal, sampler: settings }: Manifest,
  sampler: Sampler,
  { seed, sizes = SIZES }: Settings,
  done: Done,
): Promise<Float32Array> {
  const at = wav.length > sizes.window ? loudest(wav, sizes.reminder) : null;
  const { offset, peak } = level(wav, signal.sample_rate);
  const centred = offset ? wav.map((x) => x - offset) : wav;
  const nFreqs = signal.n_fft / 2 + 1;

  async function process(window: Float32Array, start: number): Promise<Float32Array> {
    const own = new Analysis(window, signal, peak);
    const firstFrame = start / signal.hop_length;
    const parts = [{ spectra: own, first: firstFrame, count: own.nFrames }];
    let before = 0; // frames that stand before the window's own
    if (at !== null) {
      const spectra = new Analysis(centred.subarray(at, at + sizes.reminder), signal, peak);
      const count = sizes.reminder / signal.hop_length;
      // Before the window, or after the first one, where what is nearest to it is thrown away.
      parts.splice(firstFrame ? 0 : 1, 0, { spectra, first: at / signal.hop_length, count });
      before = firstFrame ? count : 0;
    }
    const shown = parts.reduce((sum, part) => sum + part.count, 0);
    const frames = Math.max(MIN_FRAMES, Math.ceil(shown / FRAME_MULTIPLE) * FRAME_MULTIPLE);
    const noisy: Planes = { data: new Float32Array(3 * frames * nFreqs), frames };
    let filled = 0;
    for (const { spectra, count } of parts) {
      spectra.compress(noisy, filled, 0, count);
      filled += count;
    }
    const draw = (index: number): Float32Array => {
      const z = new Float32Array(frames * nFreqs);
      let drawn = 0;
      for (const [i, { first, count }] of parts.entries()) {
        const n = i === parts.length - 1 ? frames - drawn : count;
        z.set(frameNoise(seed, index, first, n), drawn * nFreqs);
        drawn += n;
      }
      return z;
    };
    const clean = await sample(sampler, noisy, draw);
    const rounds = settings.phase_rounds ?? 0;
    const found = toWaveform(clean, before, own.nFrames, window.length, signal, rounds);
    check(found);
    return found.wav.map((x) => x * peak);
  }

  const pieces = plan(wav.length, signal.hop_length, sizes);
  return inWindows(centred, pieces, sizes.fade, process, (n) => done(n / wav.length));
}

/** A causal model takes the recording as it comes, groups of frames at a time. */
async function enhanceCausal(
  wav: Float32Array,
  { signal, causal }: Manifest,
  sampler: Sampler,
  { seed }: Settings,
  done: Done,
): Promise<Float32Array> {
  if (causal?.lookahead_blocks) throw new Error("This page knows causal models without look-ahead.");
  const analysis = new Analysis(wav, signal);
  const synthesis = new Synthesis(signal);
  const tracker = new LevelTracker(signal);
  const states: States = { predictive: null, scores: [] };
  const nFreqs = signal.n_fft / 2 + 1;
  const out = new Float32Array(wav.length);
  let given = 0;
  const give = (part: Float32Array) => {
    const fitting = part.subarray(0, out.length - given);
    out.set(fitting, given);
    given += fitting.length;
  };
  for (let first = 0; first < analysis.nFrames; first += GROUP_FRAMES) {
    const count = Math.min(GROUP_FRAMES, analysis.nFrames - first);
    const frames = Math.ceil(count / FRAME_MULTIPLE) * FRAME_MULTIPLE;
    const noisy: Planes = { data: new Float32Array(3 * frames * nFreqs), frames };
    const peaks = analysis.compress(noisy, 0, first, count);
    const levels = tracker.push(peaks);
    for (let plane = 0; plane < 3; plane++) {
      for (let m = 0; m < count; m++) {
        const from = (plane * frames + m) * nFreqs;
        const gain = levels[m] ** -signal.compress_exponent;
        for (let i = from; i < from + nFreqs; i++) noisy.data[i] *= gain;
      }
    }
    const draw = (index: number) => frameNoise(seed, index, first, frames);
    const clean = await sample(sampler, noisy, draw, states);
    // Digital silence stays silence.
    give(synthesis.push(clean, 0, count, levels.map((level, m) => (peaks[m] > 0 ? level : 0))));
    check(synthesis);
    done(Math.min(1, (first + count) / analysis.nFrames));
  }
  give(synthesis.rest());
  return out;
}

function check({ largest }: { largest: number }): void {
  if (!(largest <= MAX_BIN)) {
    throw new Error("The network returned values beyond any signal. Try the other model.");
  }
}

/** A constant to be taken away, if there is one to speak of, and the largest magnitude without it. */
function level(wav: Float32Array, rate: number): { offset: number; peak: number } {
  let low = 0;
  let high = 0;
  let total = 0;
  for (const x of wav) {
    low = Math.min(low, x);
    high = Math.max(high, x);
    total += x;
  }
  const mean = Math.fround(total / wav.length);
  const isOffset = Math.abs(mean) > OFFSET_SHARE * Math.max(high, -low) && wav.length >= rate;
  const offset = isOffset ? mean : 0;
  return { offset, peak: Math.max(high - offset, offset - low) };
}
