/** Fourier transform of a power of two in place, float64 (Cooley and Tukey 1965). */
export class Fft {
  private readonly cos: Float64Array;
  private readonly sin: Float64Array;
  private readonly reversed: Uint32Array;

  constructor(readonly n: number) {
    if (n < 2 || n & (n - 1)) throw new RangeError(`FFT of ${n} points; expected a power of two`);
    const turn = (i: number) => (2 * Math.PI * i) / n;
    this.cos = Float64Array.from({ length: n / 2 }, (_, i) => Math.cos(turn(i)));
    this.sin = Float64Array.from({ length: n / 2 }, (_, i) => -Math.sin(turn(i)));
    this.reversed = new Uint32Array(n);
    for (let i = 1; i < n; i++) {
      this.reversed[i] = (this.reversed[i >> 1] >> 1) | (i & 1 ? n >> 1 : 0);
    }
  }

  /** Forward transform; swap the two arrays for n times the inverse. */
  run(re: Float64Array, im: Float64Array): void {
    const { n, cos, sin, reversed } = this;
    for (let i = 0; i < n; i++) {
      const j = reversed[i];
      if (j > i) {
        [re[i], re[j]] = [re[j], re[i]];
        [im[i], im[j]] = [im[j], im[i]];
      }
    }
    for (let size = 2; size <= n; size *= 2) {
      const half = size / 2;
      const stride = n / size;
      for (let first = 0; first < n; first += size) {
        for (let k = 0; k < half; k++) {
          const a = first + k;
          const b = a + half;
          const c = cos[k * stride];
          const s = sin[k * stride];
          const x = re[b] * c - im[b] * s;
          const y = re[b] * s + im[b] * c;
          re[b] = re[a] - x;
          im[b] = im[a] - y;
          re[a] += x;
          im[a] += y;
        }
      }
    }
  }
}
