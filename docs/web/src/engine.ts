/** The page's side of the worker: one job at a time, which can be cancelled. */

import type { Job, Report } from "./worker";

export interface Result {
  channels: Float32Array[];
  seconds: number;
  threads: number;
}

export class Cancelled extends Error {}

export class Engine {
  private worker: Worker | null = null;
  private reject: (error: Error) => void = () => {};

  /** Enhance copies of the channels. */
  run(job: Job, progress: (fraction: number) => void): Promise<Result> {
    this.cancel();
    const worker = (this.worker ??= new Worker(new URL("./worker.ts", import.meta.url), { type: "module" }));
    return new Promise((resolve, reject) => {
      this.reject = reject;
      worker.onmessage = ({ data }: MessageEvent<Report>) => {
        if (data.kind === "progress") return progress(data.fraction);
        this.reject = () => {};
        if (data.kind === "done") resolve(data);
        else reject(new Error(data.message));
      };
      worker.onerror = (event) => {
        this.stop();
        reject(new Error(`The page's worker did not start (${event.message || "no reason given"}). Reload the page.`));
      };
      this.busy = true;
      worker.postMessage(job);
    }).finally(() => (this.busy = false)) as Promise<Result>;
  }

  private busy = false;

  /** End the job that is running, at once: the networks cannot be asked to stop. */
  cancel(): void {
    if (!this.busy) return;
    this.stop();
    this.reject(new Cancelled());
  }

  private stop(): void {
    this.worker?.terminate();
    this.worker = null;
  }
}
