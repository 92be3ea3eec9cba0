/** The reverse diffusion, as runtime/sampler.py (paper Algorithm 1), for one stream or window. */

import type { Start, Step } from "./schedule";
import type { Planes } from "./stft";

/** What a graph hands to the other one, or to its own next call: for the backend alone to read. */
export type Opaque = unknown;

/** The two networks. A state is given and returned where the model is causal. */
export interface Networks {
  predict(noisy: Planes, state: Opaque): Promise<{ clean: Float32Array; feats: Opaque; next: Opaque }>;
  score(xt: Planes, t: number, feats: Opaque, state: Opaque): Promise<{ sigmaZ: Float32Array; next: Opaque }>;
}

/** Of a causal model: the predictive branch's, and one for every step. */
export interface States {
  predictive: Opaque;
  scores: Opaque[];
}

export interface Sampler {
  networks: Networks;
  start: Start;
  steps: Step[];
  alpha: number;
}

/**
 * Estimate [2, T, F] of noisy [3, T, F], both compressed.
 *
 * @param draw Index -> standard normals [T, F]: 0 starts the state, i follows step i.
 * @param states Read and replaced, where the model is causal.
 */
export async function sample(
  { networks, start, steps, alpha }: Sampler,
  noisy: Planes,
  draw: (index: number) => Float32Array,
  states: States = { predictive: null, scores: [] },
): Promise<Planes> {
  const { frames } = noisy;
  const predicted = await networks.predict(noisy, states.predictive);
  const clean = finite(predicted.clean);
  states.predictive = predicted.next;
  if (steps.length === 0) return { data: clean, frames };
  const n = clean.length / 2; // T F
  const mag = Float32Array.from({ length: n }, (_, i) => Math.sqrt(clean[i] ** 2 + clean[n + i] ** 2));
  const y = noisy.data.subarray(2 * n);
  const first = draw(0);
  const xt = new Float32Array(n);
  for (let i = 0; i < n; i++) xt[i] = start.w_x0 * mag[i] + start.w_y * y[i] + start.std * first[i];
  for (const [index, { t, a, b, e, n: spread }] of steps.entries()) {
    const scored = await networks.score({ data: xt, frames }, t, predicted.feats, states.scores[index]);
    const sigmaZ = finite(scored.sigmaZ);
    states.scores[index] = scored.next;
    for (let i = 0; i < n; i++) xt[i] = a * xt[i] + b * y[i] + e * sigmaZ[i];
    if (index + 1 < steps.length) {
      const z = draw(index + 1);
      for (let i = 0; i < n; i++) xt[i] += spread * z[i];
    }
  }
  // The predictive phase without atan2: X / |X|. A zero bin has no phase and stays zero.
  for (let i = 0; i < n; i++) {
    const gain = (alpha * mag[i] + (1 - alpha) * Math.max(xt[i], 0)) / Math.max(mag[i], 1e-20);
    clean[i] *= gain;
    clean[n + i] *= gain;
  }
  return { data: clean, frames };
}

function finite(values: Float32Array): Float32Array {
  if (!values.every(Number.isFinite)) throw new Error("The network returned values that are not numbers.");
  return values;
}
