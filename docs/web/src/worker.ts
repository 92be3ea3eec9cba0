/** The worker: enhances the channels of a recording, and says how far it is. */

import { open, threads, type Device } from "./backend";
import { enhance } from "./enhance";
import { withFallback } from "./fallback";
import { MODELS, type ModelName } from "./models";
import type { Networks } from "./sampler";

export interface Job {
  channels: Float32Array[];
  model: ModelName;
  device: Device;
  steps: number;
}

export type Report =
  | { kind: "progress"; fraction: number }
  | { kind: "done"; channels: Float32Array[]; seconds: number; threads: number; device: Device; why: string }
  | { kind: "failed"; message: string };

const SEED = 0n; // as the Python runtime's default
let opened: { key: string; networks: Networks } | null = null;

function report(message: Report, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer });
}

async function work(job: Job): Promise<void> {
  const { result, device, why } = await withFallback(job.device, (on) => attempt(job, on));
  report(
    { kind: "done", ...result, threads: threads(), device, why },
    result.channels.map((x) => x.buffer),
  );
}

async function attempt(
  { channels, model, steps }: Job,
  device: Device,
): Promise<{ channels: Float32Array[]; seconds: number }> {
  const key = `${model} ${device}`;
  if (opened?.key !== key) {
    opened = null;
    opened = { key, networks: await open(MODELS[model], device) };
  }
  const { networks } = opened;
  report({ kind: "progress", fraction: 0 });
  const begun = performance.now();
  const out: Float32Array[] = [];
  for (const [index, wav] of channels.entries()) {
    const done = (x: number) => report({ kind: "progress", fraction: (index + x) / channels.length });
    const settings = { steps, seed: SEED };
    out.push(await enhance(wav, MODELS[model].manifest, networks, settings, done));
  }
  return { channels: out, seconds: (performance.now() - begun) / 1000 };
}

self.onmessage = ({ data }: MessageEvent<Job>) => {
  work(data).catch((error: unknown) => {
    report({ kind: "failed", message: inWords(error) });
  });
};

function inWords(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  if (typeof WebAssembly === "undefined") {
    return "This browser does not run WebAssembly, which the page needs. Use a current Firefox, Chrome, Edge or Safari.";
  }
  if (error instanceof RangeError || /memory|bad_alloc|allocation/i.test(text)) {
    return "The browser has not enough memory for this recording. Close other tabs, or use a shorter recording.";
  }
  if (error instanceof TypeError && /fetch|404|import|load/i.test(text)) {
    return `The model could not be loaded (${text}). Check the connection and reload the page.`;
  }
  return `Enhancing failed: ${text}. Reload the page and try again.`;
}
