/** A recording as a WAV file of 16 bits; what is beyond full scale is cut off. */
export function wavFile(channels: Float32Array[], rate: number): Blob {
  const [{ length }] = channels;
  const bytes = 2 * channels.length * length;
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (at: number, s: string) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // size of what follows
  view.setUint16(20, 1, true); // whole numbers
  view.setUint16(22, channels.length, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * channels.length * rate, true); // bytes a second
  view.setUint16(32, 2 * channels.length, true); // bytes a sample of all channels
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  let at = 44;
  for (let i = 0; i < length; i++) {
    for (const channel of channels) {
      view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(channel[i] * 32768))), true);
      at += 2;
    }
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}
