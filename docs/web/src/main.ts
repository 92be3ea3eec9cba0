/** The page: what its controls do. */

import example from "../../../examples/noisy.flac?url";
import type { Device } from "./backend";
import { decode, InputError } from "./decode";
import { Cancelled, Engine } from "./engine";
import { MODELS, RATE, type ModelName } from "./models";
import { Player } from "./player";
import { Recorder } from "./recorder";
import { draw } from "./spectrogram";
import { wavFile } from "./wav";

function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found as T;
}

const button = (id: string) => element<HTMLButtonElement>(id);
const input = (id: string) => element<HTMLInputElement>(id);
const chosen = (name: string) =>
  document.querySelector<HTMLInputElement>(`input[name=${name}]:checked`)?.value ?? "";
const canvases = { before: element<HTMLCanvasElement>("before"), after: element<HTMLCanvasElement>("after") };

const engine = new Engine();
const player = new Player(RATE);
const recorder = new Recorder();
let name = "";
let before: Float32Array[] | null = null;
let after: Float32Array[] | null = null;
let loudest = 0; // power, which both spectrograms are drawn against
let task = 0; // the last one that was begun; what an older one brings is dropped

function say(text: string): void {
  element("status").textContent = text;
  element("error").textContent = "";
}

function fail(error: unknown): void {
  element("status").textContent = "";
  element("error").textContent = error instanceof Error ? error.message : String(error);
}

const clock = (s: number) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;

/** Share of the recording in the output: what is removed is lowered by the limit at most. */
function share(): number {
  const { value, max } = input("strength");
  return value === max ? 0 : 10 ** (-Number(value) / 20);
}

function mixed(): Float32Array[] {
  const part = share();
  return (after ?? []).map((wav, c) => {
    const dry = before?.[c];
    return part && dry ? wav.map((x, i) => x * (1 - part) + dry[i] * part) : wav;
  });
}

function showStrength(): void {
  const { value, max } = input("strength");
  const text = value === max ? "full" : `noise lowered by ${value} dB at most`;
  element("limit").textContent = text;
  input("strength").setAttribute("aria-valuetext", text);
  player.mix(chosen("side") === "after" ? share() : 1);
}

function showAfter(): void {
  if (after) draw(canvases.after, mixed()[0], MODELS["dvpd-tiny"].manifest.signal, loudest);
}

/** Everything that depends on what there is to hear. */
function show(): void {
  element("listen").hidden = !before;
  element("enhanced").hidden = !after;
  button("enhance").disabled = !before;
  button("save").disabled = !after;
  input("strength").disabled = !after;
  for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=side]")) {
    radio.disabled = radio.value === "after" && !after;
    radio.checked = (radio.value === "after") === !!after;
  }
  player.load(before, after);
  input("position").max = String(player.seconds);
  showAfter();
  showStrength();
  showPosition();
}

function showPosition(): void {
  const { position, seconds, playing } = player;
  const text = `${clock(position)} / ${clock(seconds)}`;
  input("position").value = String(position);
  input("position").setAttribute("aria-valuetext", text);
  element("time").textContent = text;
  element("pictures").style.setProperty("--played", String(seconds ? position / seconds : 0));
  button("play").textContent = playing ? "Pause" : "Play";
  if (playing) requestAnimationFrame(showPosition);
}

/** Take what a file, the microphone or the example gives, and enhance it. */
async function take(file: Blob, title: string): Promise<void> {
  const own = ++task;
  engine.cancel();
  element("working").hidden = true;
  say(`Decoding ${title} …`);
  try {
    const channels = await decode(file, title);
    if (own !== task) return;
    [name, before, after] = [title, channels, null];
    loudest = draw(canvases.before, channels[0], MODELS["dvpd-tiny"].manifest.signal);
    show();
    await enhance();
  } catch (error) {
    if (own === task) fail(error);
  }
}

async function enhance(): Promise<void> {
  if (!before) return;
  const own = ++task;
  const recording = before;
  const steps = Number(chosen("steps"));
  const model = element<HTMLSelectElement>("model").value as ModelName;
  const device = element<HTMLSelectElement>("device").value as Device;
  const bar = element<HTMLProgressElement>("progress");
  bar.value = 0;
  element("percent").textContent = "loading the model";
  element("working").hidden = false;
  say(`Enhancing ${name} with ${model} …`);
  try {
    const result = await engine.run({ channels: recording, model, device, steps }, (fraction) => {
      bar.value = fraction;
      element("percent").textContent = `${Math.floor(100 * fraction)} %`; // not in the status, which is read aloud
    });
    if (own !== task) return;
    after = result.channels;
    show();
    const length = recording[0].length / RATE;
    const gpu = result.why ? ` The GPU could not be used (${result.why}), so the processor was.` : "";
    if (result.why) element<HTMLSelectElement>("device").value = "wasm"; // it would fail again
    const by = result.device === "webgpu" ? "the GPU" : `${result.threads} thread${result.threads > 1 ? "s" : ""}`;
    say(
      `${name}: ${length.toFixed(1)} s enhanced in ${result.seconds.toFixed(1)} s by ${by} ` +
        `(real-time factor ${(result.seconds / length / recording.length).toFixed(2)} a channel).${gpu}`,
    );
  } catch (error) {
    if (own !== task) return;
    if (error instanceof Cancelled) say("Cancelled.");
    else fail(error);
  } finally {
    if (own === task) element("working").hidden = true;
  }
}

async function record(): Promise<void> {
  if (recorder.running) return recorder.stop();
  const begun = performance.now();
  const timer = setInterval(() => {
    if (!recorder.running) return;
    button("record").textContent = `Stop (${clock((performance.now() - begun) / 1000)})`;
  }, 250);
  player.pause();
  say("Recording …");
  let sound: Blob | null = null;
  try {
    sound = await recorder.start();
  } catch (error) {
    fail(error);
  } finally {
    clearInterval(timer);
    button("record").textContent = "Record";
  }
  if (sound) await take(sound, "Your recording");
}

function save(): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(wavFile(mixed(), RATE));
  link.download = `${name.replace(/\.\w+$/, "")}-enhanced.wav`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function takeExample(): Promise<void> {
  try {
    const response = await fetch(example);
    if (!response.ok) throw new InputError(`The example could not be loaded (${response.status}).`);
    await take(await response.blob(), "noisy.flac");
  } catch (error) {
    fail(error);
  }
}

function listenToDrops(): void {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = event.dataTransfer?.files[0];
    if (file) void take(file, file.name);
  });
}

function listen(): void {
  input("file").onchange = () => {
    const file = input("file").files?.[0];
    if (file) void take(file, file.name);
    input("file").value = ""; // so that the same file can be chosen again
  };
  button("record").onclick = () => void record();
  button("example").onclick = () => void takeExample();
  button("enhance").onclick = () => void enhance();
  button("cancel").onclick = () => engine.cancel();
  button("save").onclick = save;
  button("play").onclick = async () => {
    if (player.playing) player.pause();
    else await player.play();
    showPosition();
  };
  player.onend = showPosition;
  input("position").oninput = () => {
    player.seek(Number(input("position").value));
    showPosition();
  };
  for (const canvas of Object.values(canvases)) {
    canvas.onclick = (event) => {
      player.seek((event.offsetX / canvas.clientWidth) * player.seconds);
      showPosition();
    };
  }
  for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=side]")) {
    radio.onchange = showStrength;
  }
  const models = element<HTMLSelectElement>("model");
  const takeUsualSteps = () => {
    const { n_steps } = MODELS[models.value as ModelName].manifest.sampler;
    const usual = document.querySelector<HTMLInputElement>(`input[name=steps][value="${n_steps}"]`);
    if (usual) usual.checked = true;
  };
  models.onchange = takeUsualSteps;
  takeUsualSteps();
  input("strength").oninput = showStrength;
  input("strength").onchange = showAfter;
  listenToDrops();
}

interface WithGpu {
  gpu?: { requestAdapter(): Promise<unknown> };
}

/** The GPU is offered where there is one. */
async function offerGpu(): Promise<void> {
  const adapter = await (navigator as WithGpu).gpu?.requestAdapter().catch(() => null);
  element("devices").hidden = !adapter;
}

listen();
void offerGpu();
