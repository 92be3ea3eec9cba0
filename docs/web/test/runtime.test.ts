/** The page's own code against what the Python runtime computed: vectors.json, written by vectors.py. */

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";

import { enhance } from "../src/enhance";
import type { Manifest } from "../src/manifest";
import { frameNoise, N_FREQS } from "../src/noise";
import type { Networks } from "../src/sampler";
import { initialState, samplerSteps } from "../src/schedule";
import { Analysis, Synthesis, type Planes } from "../src/stft";
import { inWindows, loudest, plan, type WindowSizes } from "../src/windows";

const here = (name: string) => new URL(name, import.meta.url);
const json = (url: URL) => JSON.parse(readFileSync(url, "utf8"));

interface Vectors {
  every: number;
  plan: WindowSizes;
  noise: { seed: string; draw: number; frame: number; out: number[] }[];
  start: number[];
  noise_share: number;
  start_share: number[];
  steps_share: number[][];
  steps: Record<string, Record<string, number[][]>>;
  spectra: { n: number; compressed: number[]; half: number[] }[];
  windows: { n: number; windows: number[][]; loudest: number | null; out: number[] }[];
  enhanced: { model: string; n: number; steps: number; offset: number; out: number[] }[];
}

const vectors: Vectors = json(here("vectors.json"));
const manifest = (name: string): Manifest => json(here(`../../../engines/${name}/manifest.json`));
const tiny = manifest("dvpd-tiny");
const { signal: front } = tiny;

/** formula() of vectors.py. */
function signal(n: number, offset = 0): Float32Array {
  return Float32Array.from({ length: n }, (_, i) => {
    const noise = ((i * 7919 + i * i * 13) % 20011) / 20011 - 0.5;
    return noise * (0.05 + (0.6 * (i % 9001)) / 9001) + offset;
  });
}

/** StandIn of vectors.py. */
function networks(causal: boolean): Networks {
  const next = (state: unknown, frames: number) => ((state as number) ?? 0) + 0.0005 * frames;
  return {
    async predict({ data, frames }, state) {
      const n = data.length / 3;
      const gain = causal ? 1 + ((state as number) ?? 0) : 1;
      const clean = data.subarray(0, 2 * n).map((x) => x * 0.8 * gain);
      return { clean, feats: data.slice(2 * n), next: next(state, frames) };
    },
    async score({ data, frames }, t, feats, state) {
      const grown = causal ? ((state as number) ?? 0) * t : 0;
      const sigmaZ = data.map((x, i) => 0.3 * x + t * (feats as Float32Array)[i] - 0.05 + grown);
      return { sigmaZ, next: next(state, frames) };
    },
  };
}

function every(values: Float32Array, step = vectors.every): number[] {
  return Array.from(values).filter((_, i) => i % step === 0);
}

/** Largest difference of two lists. */
function difference(got: ArrayLike<number>, wanted: number[]): number {
  expect(got.length).toBe(wanted.length);
  return wanted.reduce((most, x, i) => Math.max(most, Math.abs(x - got[i])), 0);
}

test.each(vectors.noise)("noise of seed $seed, draw $draw, frame $frame", ({ seed, draw, frame, out }) => {
  const got = frameNoise(BigInt(seed), draw, frame, 2);
  const kept = Array.from(got).filter((_, i) => (i % N_FREQS) % 4 === 0);
  expect(difference(kept, out)).toBeLessThan(1e-6);
});

test("noise depends on the absolute frame alone", () => {
  const both = frameNoise(3n, 1, 40, 2);
  expect(frameNoise(3n, 1, 41, 1)).toEqual(both.slice(N_FREQS));
});

test("coefficients of the sampler", () => {
  const { noise: _, ...sampler } = tiny.sampler; // without: all of it
  const { w_x0, w_y, std } = initialState({ ...tiny, sampler });
  expect(difference([w_x0, w_y, std], vectors.start)).toBeLessThan(1e-7);
  for (const last of ["euler", "exact"]) {
    for (const count of [1, 3]) {
      const model = { ...tiny, sampler: { ...sampler, last_step: last } };
      const got = samplerSteps(model, count).map(({ t, a, b, e, n }) => [t, a, b, e, n]);
      expect(difference(got.flat(), vectors.steps[last][count].flat())).toBeLessThan(1e-6);
    }
  }
  expect(samplerSteps(tiny, 0)).toEqual([]);
});

test("a share of the sampler's noise", () => {
  const model = { ...tiny, sampler: { ...tiny.sampler, last_step: "euler", noise: vectors.noise_share } };
  const { w_x0, w_y, std } = initialState(model);
  expect(difference([w_x0, w_y, std], vectors.start_share)).toBeLessThan(1e-7);
  const got = samplerSteps(model, 3).map(({ t, a, b, e, n }) => [t, a, b, e, n]);
  expect(difference(got.flat(), vectors.steps_share.flat())).toBeLessThan(1e-6);
});

describe.each(vectors.spectra)("spectrum of $n samples", ({ n, compressed, half }) => {
  const analysis = new Analysis(signal(n), front);
  const frames = analysis.nFrames;
  const spec: Planes = { data: new Float32Array(3 * frames * N_FREQS), frames };
  analysis.compress(spec, 0, 0, frames);

  test("compressed", () => {
    const kept = Array.from(spec.data).filter((_, i) => {
      const frame = Math.floor(i / N_FREQS) % frames;
      return frame % 3 === 0 && (i % N_FREQS) % 5 === 0;
    });
    expect(difference(kept, compressed)).toBeLessThan(1e-6);
  });

  test("and back, at half the amplitude", () => {
    const lower = { ...spec, data: spec.data.map((x) => x * 0.5 ** front.compress_exponent) };
    const synthesis = new Synthesis(front);
    const out = [...synthesis.push(lower, 0, frames), ...synthesis.rest()].slice(0, n);
    expect(difference(out, half)).toBeLessThan(1e-6);
  });
});

test.each(vectors.windows)("windows of $n samples", async ({ n, windows, loudest: at, out }) => {
  const wav = signal(n);
  const pieces = plan(n, front.hop_length, vectors.plan);
  expect(pieces.map(({ start, stop }) => [start, stop])).toEqual(windows);
  expect(loudest(wav, vectors.plan.reminder)).toBe(at);
  const finals: number[] = [];
  const got = await inWindows(
    wav,
    pieces,
    vectors.plan.fade,
    async (part, start) => part.map((x) => x * (0.5 + start / 128 / 100)),
    (samples) => finals.push(samples),
  );
  expect(difference(every(got), out)).toBeLessThan(1e-6);
  expect(finals.at(-1)).toBe(n);
});

test.each(vectors.enhanced)("$model, $n samples, $steps steps", async ({ model, n, steps, offset, out }) => {
  const engine = manifest(model);
  const settings = { steps, seed: 7n, sizes: vectors.plan };
  const fractions: number[] = [];
  const wav = signal(n, offset);
  const got = await enhance(wav, engine, networks(!!engine.causal), settings, (x) => fractions.push(x));
  expect(got.length).toBe(n);
  expect(difference(every(got), out)).toBeLessThan(1e-5);
  expect(fractions.at(-1)).toBe(1);
});

test("silence stays silence", async () => {
  for (const name of ["dvpd-tiny", "dvpd-live-tiny"]) {
    const engine = manifest(name);
    const got = await enhance(new Float32Array(9000), engine, networks(!!engine.causal), { steps: 1, seed: 0n });
    expect(got.every((x) => x === 0)).toBe(true);
  }
});

test("values that are not numbers are refused", async () => {
  const broken = { ...networks(false), predict: async () => ({ clean: new Float32Array([NaN, 0]), feats: 0, next: 0 }) };
  await expect(enhance(signal(900), tiny, broken, { steps: 0, seed: 0n })).rejects.toThrow("not numbers");
});
