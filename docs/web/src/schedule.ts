/** Coefficients of the sampler, as runtime/schedule.py, for the BBED process of the shipped models. */

import type { Manifest, Sde } from "./manifest";

export interface Start {
  w_x0: number;
  w_y: number;
  std: number;
}

export interface Step {
  t: number;
  a: number;
  b: number;
  e: number;
  n: number;
}

const EULER_GAMMA = 0.5772156649015329;

/** Exponential integral Ei(x) for -10 <= x < 0 (Abramowitz and Stegun 5.1.10). */
function exponentialIntegral(x: number): number {
  let total = EULER_GAMMA + Math.log(-x);
  let power = 1;
  for (let n = 1; n < 60; n++) {
    power *= x / n;
    total += power / n;
  }
  return total;
}

/** Standard deviation of the marginal at time t (Lay et al. 2023). */
function std({ k, c }: Sde, t: number): number {
  const logK = Math.log(k);
  const h = 2 * k ** 2 * logK;
  const ei = exponentialIntegral(2 * (t - 1) * logK) - exponentialIntegral(-2 * logK);
  const inner = Math.expm1(2 * t * logK) + t + h * (1 - t) * ei;
  return Math.sqrt(Math.max(c * (1 - t) * inner, 0));
}

/** Share of the process's noise in the states; a manifest without it is Algorithm 1's. */
function share({ noise }: Manifest["sampler"]): number {
  return noise ?? 1;
}

/** The first state around the predictive estimate. */
export function initialState({ sde, sampler }: Manifest): Start {
  if (sde.name !== "bbed") throw new Error(`process ${sde.name}; this page knows bbed`);
  const t = sampler.t_rs;
  return { w_x0: 1 - t, w_y: t, std: share(sampler) * std(sde, t) };
}

/** The reverse steps; none for the predictive branch alone. */
export function samplerSteps({ sde, sampler }: Manifest, count: number): Step[] {
  const dt = sampler.t_rs / count;
  return Array.from({ length: count }, (_, index) => {
    const t = (sampler.t_rs * (count - index)) / count;
    const last = index === count - 1;
    if (last && sampler.last_step === "exact") {
      const w = 1 - t;
      return { t, a: 1 / w, b: 1 - 1 / w, e: -1 / w, n: 0 };
    }
    const rate = 1 / (1 - t);
    const g = Math.sqrt(sde.c) * Math.exp(t * Math.log(sde.k));
    return {
      t,
      a: 1 + rate * dt,
      b: -rate * dt,
      e: (-(g ** 2) * dt) / std(sde, t) ** 2,
      n: last ? 0 : share(sampler) * g * Math.sqrt(dt),
    };
  });
}
