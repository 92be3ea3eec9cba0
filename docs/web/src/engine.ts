/** The page's side of the worker: one job at a time, which can be cancelled. */

import type { Device } from "./backend";
import type { Job, Report } from "./worker";

export interface Result {
  channels: Float32Array[];
  seconds: number;
  threads: number;
  device: Device; // that did it
  why: string; // another than was asked for
}

export class Cancelled extends Error {}

export class Engine {
  private worker: Worker | null = null;
  private reject: ((error: Error) => void) | null = null; // of the job that is running

  /** Enhance copies of the channels. */
  run(job: Job, progress: (fraction: number) => void): Promise<Result> {
    this.cancel();
    const worker = (this.worker ??= new Worker(new URL("./worker.ts", import.meta.url), { type: "module" }));
    return new Promise((resolve, reject) => {
      this.reject = reject;
      worker.onmessage = ({ data }: MessageEvent<Report>) => {
        if (data.kind === "progress") progress(data.fraction);
        else if (data.kind === "failed") this.stop(new Error(data.message));
        else {
          this.reject = null;
          resolve(data);
        }
      };
      worker.onerror = ({ message }) =>
        this.stop(new Error(`The page's worker failed (${message || "no reason given"}). Reload the page.`));
      worker.postMessage(job);
    });
  }

  /** End the job that is running, at once: the networks cannot be asked to stop. */
  cancel(): void {
    if (this.reject) this.stop(new Cancelled());
  }

  /** Let the worker go with all its memory; the next job gets another one. */
  private stop(reason: Error): void {
    this.worker?.terminate();
    this.worker = null;
    this.reject?.(reason);
    this.reject = null;
  }
}
