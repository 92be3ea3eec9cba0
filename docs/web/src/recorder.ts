/** The microphone, as a recording that is decoded like a file. */

import { InputError } from "./decode";

const REFUSALS: Record<string, string> = {
  NotAllowedError: "The browser was not allowed to use the microphone. Allow it for this page, and try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone is in use by another program.",
};

export class Recorder {
  private recorder: MediaRecorder | null = null;

  get running(): boolean {
    return this.recorder !== null;
  }

  /** Record until `stop`; the browser's own noise reduction is off, as that is what is compared. */
  async start(): Promise<Blob> {
    if (!navigator.mediaDevices || typeof MediaRecorder === "undefined") {
      throw new InputError("This browser gives no microphone to this page: it needs https, or localhost.");
    }
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio }).catch((error: Error) => {
      throw new InputError(REFUSALS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    });
    const recorder = (this.recorder = new MediaRecorder(stream));
    const parts: Blob[] = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    return new Promise<Blob>((resolve, reject) => {
      recorder.onstop = () => resolve(new Blob(parts, { type: recorder.mimeType }));
      recorder.onerror = () => reject(new InputError("Recording failed."));
      recorder.start();
    }).finally(() => {
      this.recorder = null;
      for (const track of stream.getTracks()) track.stop();
    });
  }

  stop(): void {
    this.recorder?.stop();
  }
}
