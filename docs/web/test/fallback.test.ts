/** What happens where the GPU cannot be used. */

import { expect, test } from "vitest";

import type { Device } from "../src/backend";
import { withFallback } from "../src/fallback";

test("the device that was asked for does it", async () => {
  for (const device of ["wasm", "webgpu"] as const) {
    expect(await withFallback(device, async (on) => on)).toEqual({ result: device, device, why: "" });
  }
});

test("what fails on the GPU is done again on the processor, and why is told", async () => {
  const tried: Device[] = [];
  const done = await withFallback("webgpu", async (on) => {
    tried.push(on);
    if (on === "webgpu") throw new Error("no available adapters.\n  at somewhere");
    return 7;
  });
  expect(tried).toEqual(["webgpu", "wasm"]);
  expect(done).toEqual({ result: 7, device: "wasm", why: "no available adapters." });
});

test("what fails on the processor fails", async () => {
  const fail = async () => {
    throw new RangeError("memory");
  };
  await expect(withFallback("wasm", fail)).rejects.toThrow("memory");
  await expect(withFallback("webgpu", fail)).rejects.toThrow("memory");
});
