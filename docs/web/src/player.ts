/** Plays the recording and its enhanced form together; what is heard is a matter of two gains. */

const GLIDE_S = 0.008; // of the gains, so that switching does not click

export class Player {
  private context: AudioContext | null = null;
  private sources: AudioBufferSourceNode[] = [];
  private gains: GainNode[] = [];
  private sides: (Float32Array[] | null)[] = [null, null]; // before, after
  private share = 1; // of the recording itself in what is heard
  private offset = 0; // position at which it was started, or is paused
  private begun = 0; // time of the context then
  onend: () => void = () => {};

  constructor(private readonly rate: number) {}

  get seconds(): number {
    return (this.sides[0]?.[0].length ?? 0) / this.rate;
  }

  get playing(): boolean {
    return this.sources.length > 0;
  }

  get position(): number {
    if (!this.playing || !this.context) return this.offset;
    return Math.min(this.seconds, this.offset + this.context.currentTime - this.begun);
  }

  /** Give it what it plays; the position is kept where the recording is the same. */
  load(before: Float32Array[] | null, after: Float32Array[] | null): void {
    const playing = this.playing && this.sides[0] === before;
    const position = this.sides[0] === before ? this.position : 0;
    this.halt();
    this.sides = [before, after];
    this.offset = position;
    if (playing) void this.play();
  }

  /** Share of the recording itself: 1 is before, 0 is the enhanced form alone. */
  mix(share: number): void {
    this.share = share;
    this.levels().forEach((level, i) => {
      this.gains[i]?.gain.setTargetAtTime(level, this.context?.currentTime ?? 0, GLIDE_S);
    });
  }

  private levels(): [number, number] {
    return this.sides[1] ? [this.share, 1 - this.share] : [1, 0];
  }

  async play(): Promise<void> {
    const context = (this.context ??= new AudioContext());
    await context.resume();
    this.halt();
    if (this.offset >= this.seconds) this.offset = 0;
    this.begun = context.currentTime;
    this.sides.forEach((channels, i) => {
      if (!channels) return;
      const buffer = context.createBuffer(channels.length, channels[0].length, this.rate);
      channels.forEach((wav, c) => buffer.copyToChannel(wav as Float32Array<ArrayBuffer>, c));
      const source = new AudioBufferSourceNode(context, { buffer });
      const gain = new GainNode(context, { gain: this.levels()[i] });
      source.connect(gain).connect(context.destination);
      source.start(this.begun, this.offset);
      this.sources.push(source);
      this.gains[i] = gain;
    });
    this.sources[0].onended = () => {
      this.halt();
      this.offset = 0;
      this.onend();
    };
  }

  pause(): void {
    this.offset = this.position;
    this.halt();
  }

  seek(seconds: number): void {
    this.offset = Math.max(0, Math.min(seconds, this.seconds));
    if (this.playing) void this.play();
  }

  private halt(): void {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources = [];
    this.gains = [];
  }
}
