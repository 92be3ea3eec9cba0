/** The two graphs in ONNX Runtime Web: on the processor (WASM), or on the GPU (WebGPU). */

import type { InferenceSession, Tensor } from "onnxruntime-web";
import gpuModule from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url";
import gpuBinary from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url";
import cpuModule from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import cpuBinary from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import type { Model } from "./models";
import type { Networks, Opaque } from "./sampler";
import { N_FREQS } from "./noise";

export type Device = "wasm" | "webgpu";

const N_FEATS = 6;
const MAX_THREADS = 4;

/** Threads that ONNX Runtime may use: one where the page is not isolated from other sites. */
export function threads(): number {
  return self.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/** Load the predictive graph; the score graph comes with the first step. */
export async function open(model: Model, device: Device): Promise<Networks> {
  const ort: typeof import("onnxruntime-web") =
    device === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  const [mjs, wasm] = device === "webgpu" ? [gpuModule, gpuBinary] : [cpuModule, cpuBinary];
  // Absolute: ONNX Runtime would look beside itself, and its threads have another place.
  const absolute = (url: string) => new URL(url, self.location.href).href;
  ort.env.wasm.wasmPaths = { mjs: absolute(mjs), wasm: absolute(wasm) };
  ort.env.wasm.numThreads = threads();
  ort.env.logLevel = "error";

  const load = async (url: string): Promise<InferenceSession> => {
    const response = await fetch(url);
    if (!response.ok) throw new TypeError(`${url}: ${response.status}`);
    const graph = new Uint8Array(await response.arrayBuffer());
    return ort.InferenceSession.create(graph, { executionProviders: [device] });
  };
  const predictive = await load(model.predictive);
  let score: Promise<InferenceSession> | undefined;
  const loadScore = async (): Promise<InferenceSession> => {
    try {
      return await (score ??= load(model.score));
    } catch (error) {
      score = undefined; // a later recording tries again
      throw error;
    }
  };

  const tensor = (data: Float32Array, dims: number[]) => new ort.Tensor("float32", data, dims);
  const ones = tensor(new Float32Array(4).fill(1), [2, 2]);
  const causal = model.manifest.causal;
  const given = (state: Opaque, size: number) =>
    (state as Tensor | undefined) ?? tensor(new Float32Array(size), [1, size]);

  return {
    async predict({ data, frames }, state) {
      const feeds: Record<string, Tensor> = { noisy: tensor(data, [1, 3, frames, N_FREQS]) };
      if (causal) feeds.state = given(state, causal.state_size.predictive);
      const out = await predictive.run(feeds);
      const feats: Record<string, Tensor> = {};
      for (let i = 0; i < N_FEATS; i++) feats[`feat_${i}`] = out[`feat_${i}`];
      return { clean: out.clean_ri.data as Float32Array, feats, next: out.next_state };
    },
    async score({ data, frames }, t, feats, state) {
      const feeds: Record<string, Tensor> = {
        xt: tensor(data, [1, 1, frames, N_FREQS]),
        t: tensor(Float32Array.of(t), [1]),
        ...(feats as Record<string, Tensor>),
        tlb_skip: ones,
        tlb_backbone: ones,
      };
      if (causal) feeds.state = given(state, causal.state_size.score);
      const out = await (await loadScore()).run(feeds);
      return { sigmaZ: out.sigma_z.data as Float32Array, next: out.next_state };
    },
  };
}
