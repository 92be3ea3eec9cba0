/**
 * Enhance a recording in the page, in a headless Chromium, and say what memory it takes (Linux).
 *
 *     node test/memory.mjs CHROMIUM FOLDER RECORDING [STEPS [MODEL]]
 *
 * Printed as JSON: the largest resident memory of the page's process in MB before a recording is
 * there, while it is enhanced, after it and after playing it; proportional, so that what processes
 * share counts once.
 */

import { readdir, readFile } from "node:fs/promises";
import { openPage } from "./open.mjs";

const [executablePath, folder, recording, steps = "0", model = "dvpd-tiny"] = process.argv.slice(2);
const EVERY_MS = 1000;
const TIMEOUT_MS = 3_600_000;
const { browser, address, close, profile } = await openPage(executablePath, folder);

const text = (id, name) => readFile(`/proc/${id}/${name}`, "utf8").catch(() => "");

/** Whether a process belongs to this browser, and not to another one of the machine. */
async function isOurs(id) {
  for (let at = id; at > 1; at = Number(/^PPid:\s+(\d+)/m.exec(await text(at, "status"))?.[1] ?? 0)) {
    if ((await text(at, "cmdline")).includes(profile)) return true;
  }
  return false;
}

/** MB of the browser's largest renderer: the page, its worker and what they decode. */
async function pageMemory() {
  let most = 0;
  for (const id of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    if (!(await text(id, "cmdline")).includes("--type=renderer") || !(await isOurs(Number(id)))) continue;
    const kilobytes = /^Pss:\s+(\d+) kB/m.exec(await text(id, "smaps_rollup"))?.[1] ?? 0;
    most = Math.max(most, Number(kilobytes) / 1000);
  }
  return most;
}

const table = {};
let phase = "before";
const timer = setInterval(async () => {
  const own = phase;
  const now = await pageMemory();
  table[own] = Math.max(table[own] ?? 0, Math.round(now));
}, EVERY_MS);
try {
  const page = browser.pages()[0] ?? (await browser.newPage());
  page.setDefaultTimeout(TIMEOUT_MS);
  const wait = (ms) => page.waitForTimeout(ms);
  await page.goto(address);
  await page.waitForLoadState("networkidle");
  await page.selectOption("#model", model);
  await page.check(`input[name=steps][value='${steps}']`);
  await wait(3000);
  phase = "enhancing";
  await page.setInputFiles("#file", recording);
  await page.waitForFunction(() => /enhanced in/.test(document.getElementById("status").textContent)
    || document.getElementById("error").textContent);
  table.status = await page.locator("#status, #error").allTextContents();
  phase = "after";
  await wait(3000);
  phase = "playing";
  await page.click("#play");
  await wait(3000);
} finally {
  clearInterval(timer);
  await close();
  console.log(JSON.stringify(table, null, 1));
}
