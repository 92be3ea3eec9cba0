/** What the page reads of an engine's manifest.json; the constants are written there alone. */

export interface Signal {
  sample_rate: number;
  n_fft: number;
  hop_length: number;
  compress_factor: number;
  compress_exponent: number;
}

export interface Sde {
  name: string;
  k: number;
  c: number;
}

export interface Manifest {
  name: string;
  version: string;
  signal: Signal;
  sde: Sde;
  sampler: {
    t_rs: number;
    n_steps: number;
    alpha: number;
    last_step: string;
    phase_rounds?: number;
    noise?: number;
  };
  causal?: {
    lookahead_blocks: number;
    block_frames: number;
    state_size: { predictive: number; score: number };
  };
}
