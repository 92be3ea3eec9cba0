/** The engines of the checkout, as they are. */

import liveManifest from "../../../engines/dvpd-live-tiny/manifest.json";
import livePredictive from "../../../engines/dvpd-live-tiny/predictive.onnx?url";
import liveScore from "../../../engines/dvpd-live-tiny/score.onnx?url";
import tinyManifest from "../../../engines/dvpd-tiny/manifest.json";
import tinyPredictive from "../../../engines/dvpd-tiny/predictive.onnx?url";
import tinyScore from "../../../engines/dvpd-tiny/score.onnx?url";
import type { Manifest } from "./manifest";

export interface Model {
  manifest: Manifest;
  predictive: string; // addresses of the graphs
  score: string;
}

export type ModelName = "dvpd-tiny" | "dvpd-live-tiny";

export const MODELS: Record<ModelName, Model> = {
  "dvpd-tiny": { manifest: tinyManifest, predictive: tinyPredictive, score: tinyScore },
  "dvpd-live-tiny": { manifest: liveManifest, predictive: livePredictive, score: liveScore },
};

/** The rate of every model (Hz). */
export const RATE = tinyManifest.signal.sample_rate;
