/** Build the page and open it in a headless Chromium. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { build, preview } from "vite";

const root = new URL("..", import.meta.url).pathname;

/** The browser, the page's address, and what ends both; the built page lies in `folder`/site. */
export async function openPage(executablePath, folder, device = "wasm", more = []) {
  const args = [
    "--no-sandbox",
    ...(device === "webgpu" ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] : ["--disable-gpu"]),
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    ...more,
  ];
  const built = { root, logLevel: "error", build: { outDir: join(folder, "site"), emptyOutDir: true } };
  await build(built);
  const server = await preview({ ...built, preview: { port: 0, host: "127.0.0.1" } });
  const profile = await mkdtemp(join(tmpdir(), "dvpd-web-"));
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath,
    args,
    headless: true,
    acceptDownloads: true,
    viewport: { width: 1280, height: 900 },
  });
  const close = async () => {
    await browser.close();
    await server.close();
    await rm(profile, { recursive: true, force: true });
  };
  return { browser, address: server.resolvedUrls.local[0], close, profile };
}
