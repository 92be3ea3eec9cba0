/** A file of the user's as samples at the model's rate; the browser decodes it. */

import { RATE } from "./models";

export const MAX_MINUTES = 30;
const MAX_CHANNELS = 2;

/** What the user is told. */
export class InputError extends Error {}

const tooLong = (name: string, seconds: number) =>
  new InputError(
    `${name} is ${Math.round(seconds / 60)} minutes long; this page takes up to ${MAX_MINUTES}. Cut it, or use the dvpd program.`,
  );

/** Length as the file itself says, before it is decoded; NaN or infinite where it does not. */
function announcedSeconds(file: Blob): Promise<number> {
  const audio = new Audio();
  const url = URL.createObjectURL(file);
  return new Promise<number>((resolve) => {
    audio.onloadedmetadata = () => resolve(audio.duration);
    audio.onerror = () => resolve(NaN);
    audio.preload = "metadata";
    audio.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

/** Channels of a recording; two equal ones are one. */
export async function decode(file: Blob, name: string): Promise<Float32Array[]> {
  if (file.size === 0) throw new InputError(`${name} is empty.`);
  const announced = await announcedSeconds(file);
  if (announced > MAX_MINUTES * 60 && announced < Infinity) throw tooLong(name, announced);
  let sound: AudioBuffer;
  try {
    const bytes = await file.arrayBuffer();
    // A context at the model's rate: the browser resamples while it decodes.
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  } catch (error) {
    if (error instanceof RangeError || (error as Error)?.name === "NotReadableError") {
      throw new InputError(`${name} cannot be read: it is too large for this browser's memory, or it was moved.`);
    }
    throw new InputError(
      `${name} cannot be decoded: this browser does not know its format, or the file is damaged. WAV, FLAC and MP3 work.`,
    );
  }
  if (sound.duration > MAX_MINUTES * 60) throw tooLong(name, sound.duration);
  if (sound.numberOfChannels > MAX_CHANNELS) {
    throw new InputError(`${name} has ${sound.numberOfChannels} channels; this page takes one or two.`);
  }
  const channels = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
  for (const channel of channels) {
    if (!channel.every(Number.isFinite)) throw new InputError(`${name} holds values that are not numbers.`);
  }
  const [first, second] = channels;
  return second?.every((x, i) => x === first[i]) ? [first] : channels;
}
