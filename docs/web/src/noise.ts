/**
 * Gaussian noise by absolute position, as runtime/noise.py defines it: Philox 4x64-10 with key
 * (seed, draw), 33 counters a frame, and the Box-Muller transform.
 *
 * 64-bit words are pairs of 32-bit halves: BigInt would take longer than the networks.
 */

export const N_FREQS = 257;
const PAIRS = (N_FREQS + 1) / 2; // one 64-bit word gives two normals
const COUNTERS = Math.ceil(PAIRS / 4); // Philox yields four words a counter
const ROUNDS = 10;
const TWO32 = 2 ** 32;

// [high, low] of the multipliers and of what the keys grow by (Salmon et al. 2011).
const M0 = [0xd2e7470e, 0xe14c6c93] as const;
const M1 = [0xca5a8263, 0x95121157] as const;
const W0 = [0x9e3779b9, 0x7f4a7c15] as const;
const W1 = [0xbb67ae85, 0x84caa73b] as const;

/** High half of the product of two unsigned 32-bit numbers. */
function high(a: number, b: number): number {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const mid = a1 * b0 + ((a0 * b0) >>> 16);
  const low = a0 * b1 + (mid & 0xffff);
  return a1 * b1 + (mid >>> 16) + (low >>> 16);
}

/** out[0..3] = the 128-bit product of m and (h, l), highest part first. */
function multiply(out: Uint32Array, m: readonly [number, number], h: number, l: number): void {
  const [mh, ml] = m;
  const low = Math.imul(ml, l) >>> 0;
  const s1 = high(ml, l) + (Math.imul(ml, h) >>> 0) + (Math.imul(mh, l) >>> 0);
  const s2 =
    high(ml, h) + high(mh, l) + (Math.imul(mh, h) >>> 0) + Math.floor(s1 / TWO32);
  out[3] = low;
  out[2] = s1;
  out[1] = s2;
  out[0] = high(mh, h) + Math.floor(s2 / TWO32);
}

const P = new Uint32Array(4);
const Q = new Uint32Array(4);

/** words[0..7] = the four 64-bit words of one counter, each as high and low half. */
function philox(words: Uint32Array, counter: number, key: Uint32Array): void {
  words.fill(0);
  words[0] = Math.floor(counter / TWO32);
  words[1] = counter;
  let [k0h, k0l, k1h, k1l] = key;
  for (let round = 0; round < ROUNDS; round++) {
    multiply(P, M0, words[0], words[1]);
    multiply(Q, M1, words[4], words[5]);
    words[0] = Q[0] ^ words[2] ^ k0h;
    words[1] = Q[1] ^ words[3] ^ k0l;
    words[4] = P[0] ^ words[6] ^ k1h;
    words[5] = P[1] ^ words[7] ^ k1l;
    words[2] = Q[2];
    words[3] = Q[3];
    words[6] = P[2];
    words[7] = P[3];
    const l0 = k0l + W0[1];
    k0h = (k0h + W0[0] + (l0 >= TWO32 ? 1 : 0)) >>> 0;
    k0l = l0 >>> 0;
    const l1 = k1l + W1[1];
    k1h = (k1h + W1[0] + (l1 >= TWO32 ? 1 : 0)) >>> 0;
    k1l = l1 >>> 0;
  }
}

/** Standard normals [nFrames, 257] of the frames from firstFrame on; a seed is in [0, 2^64). */
export function frameNoise(
  seed: bigint,
  draw: number,
  firstFrame: number,
  nFrames: number,
): Float32Array {
  const key = new Uint32Array([Number(seed >> 32n), Number(seed & 0xffffffffn), 0, draw]);
  const words = new Uint32Array(8);
  const normals = new Float32Array(nFrames * N_FREQS);
  for (let frame = 0; frame < nFrames; frame++) {
    for (let pair = 0; pair < PAIRS; pair++) {
      // NumPy counts up before it draws.
      if (pair % 4 === 0) philox(words, (firstFrame + frame) * COUNTERS + pair / 4 + 1, key);
      const at = 2 * (pair % 4);
      const radius = Math.sqrt(-2 * Math.log((words[at] + 1) / TWO32));
      const angle = words[at + 1] * (2 * Math.PI * 2 ** -32);
      const place = frame * N_FREQS + 2 * pair;
      normals[place] = radius * Math.cos(angle);
      if (2 * pair + 1 < N_FREQS) normals[place + 1] = radius * Math.sin(angle);
    }
  }
  return normals;
}
