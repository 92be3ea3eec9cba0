/** The processor, where the GPU was asked for and cannot do it. */

import type { Device } from "./backend";

export interface Attempt<T> {
  result: T;
  device: Device; // that did it
  why: string; // the GPU did not; empty if nothing went wrong
}

/** Try on a device; what fails on the GPU is done again on the processor. */
export async function withFallback<T>(
  device: Device,
  attempt: (device: Device) => Promise<T>,
): Promise<Attempt<T>> {
  try {
    return { result: await attempt(device), device, why: "" };
  } catch (error) {
    if (device === "wasm") throw error;
    const text = error instanceof Error ? error.message : String(error);
    return { result: await attempt("wasm"), device: "wasm", why: text.split("\n")[0].slice(0, 200) };
  }
}
