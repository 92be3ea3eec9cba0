/**
 * Build the page, use it as a person would, in a headless Chromium, and write what came of it.
 *
 *     node test/drive.mjs CHROMIUM FOLDER RECORDING [STEPS [MODEL [DEVICE]]]
 *
 * Into the folder: site/, enhanced.wav (the page's download), wide.png, narrow.png, dark.png, facts.json.
 */

import { writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { openPage } from "./open.mjs";

const [executablePath, folder, recording, steps = "1", model = "dvpd-tiny", device = "wasm"] = process.argv.slice(2);
const TIMEOUT_MS = 600_000;
const { browser, address, close } = await openPage(executablePath, folder, device);
const facts = { errors: [], elsewhere: [], sent: 0, requests: 0 };
let graphs = [];

async function drive() {
  const page = browser.pages()[0] ?? (await browser.newPage());
  page.setDefaultTimeout(TIMEOUT_MS);
  page.on("pageerror", (error) => facts.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && facts.errors.push(message.text()));
  browser.on("request", (request) => {
    facts.requests += 1;
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(address)) facts.elsewhere.push(request.url());
    const graph = /(predictive|score)[^/]*\.onnx$/.exec(request.url());
    if (graph) graphs.push(graph[1]);
    if (request.method() !== "GET") facts.sent += 1;
  });
  const status = () => page.locator("#status").textContent();
  const alert = () => page.locator("#error").textContent();
  const after = page.locator("input[name=side][value=after]");
  const finished = () => page.waitForFunction(() => /enhanced in/.test(document.getElementById("status").textContent)
    || document.getElementById("error").textContent);

  await page.goto(address);
  facts.isolated = await page.evaluate(() => self.crossOriginIsolated);
  await page.waitForLoadState("networkidle");
  facts.offersGpu = await page.locator("#devices").isVisible();

  // What cannot be decoded is said in words.
  const garbage = { name: "notes.wav", mimeType: "audio/wav", buffer: Buffer.from("no sound at all") };
  await page.setInputFiles("#file", garbage);
  await page.waitForFunction(() => document.getElementById("error").textContent);
  facts.undecodable = await alert();

  // A job is cancelled while it runs; the page can be used on.
  await page.check("input[name=steps][value='3']");
  await page.setInputFiles("#file", recording);
  await page.click("#cancel");
  await page.waitForFunction(() => document.getElementById("status").textContent === "Cancelled.");
  facts.cancelled = { working: await page.locator("#working").isVisible(), after: await after.isEnabled() };

  await page.selectOption("#model", model);
  if (device !== "wasm") await page.selectOption("#device", device);
  await page.check(`input[name=steps][value='${steps}']`);
  const begun = Date.now();
  await page.click("#enhance");
  await finished();
  facts.seconds = (Date.now() - begun) / 1000;
  facts.status = await status();
  if (await alert()) throw new Error(await alert());
  const download = page.waitForEvent("download");
  await page.click("#save");
  facts.saved = (await download).suggestedFilename();
  await (await download).saveAs(join(folder, "enhanced.wav"));

  // The other side is heard from the same place; keys do what the mouse does.
  const position = () => page.locator("#position").evaluate((slider) => Number(slider.value));
  const half = await page.locator("#position").evaluate((slider) => {
    slider.value = String(slider.max / 2);
    slider.dispatchEvent(new Event("input"));
    return Number(slider.value);
  });
  await after.focus();
  await page.keyboard.press("ArrowLeft");
  facts.switched = await page.locator("input[name=side][value=before]").isChecked();
  facts.moved = (await position()) - half;
  await page.click("#play");
  await page.waitForFunction((x) => Number(document.getElementById("position").value) !== x, half);
  await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowRight");
  facts.returned = await after.isChecked();
  await page.waitForFunction(() => document.getElementById("play").textContent === "Play"); // its end

  await page.screenshot({ path: join(folder, "wide.png"), fullPage: true });
  await page.setViewportSize({ width: 360, height: 740 });
  facts.overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  await page.screenshot({ path: join(folder, "narrow.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(folder, "dark.png"), fullPage: true });

  // Half a second of Chromium's stand-in for a microphone.
  await page.check("input[name=steps][value='0']");
  await page.click("#record");
  await page.waitForTimeout(500);
  await page.click("#record");
  await page.waitForFunction(() => /^Your recording: .* enhanced/.test(document.getElementById("status").textContent)
    || document.getElementById("error").textContent);
  facts.microphone = (await status()) || (await alert());

  // A GPU that is promised and not there: Chromium's workers have none.
  if (device !== "wasm") return;
  await page.addInitScript(() => {
    Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({}) } });
  });
  facts.graphs = [...new Set(graphs)].sort();
  graphs = [];
  await page.reload();
  await page.locator("#devices").waitFor();
  await page.selectOption("#device", "webgpu");
  await page.check("input[name=steps][value='0']");
  await page.setInputFiles("#file", recording);
  await finished();
  facts.graphsWithoutSteps = [...new Set(graphs)];
  facts.withoutGpu = (await status()) || (await alert());
  facts.deviceAfter = await page.locator("#device").inputValue();
}

try {
  await drive();
} finally {
  facts.recording = basename(recording);
  await writeFile(join(folder, "facts.json"), JSON.stringify(facts, null, 1));
  await close();
}
