"""Write vectors.json: what the Python runtime computes, for the page's own code to be held against.

    python docs/web/test/vectors.py

Networks stand in that both languages can compute; the signals are formulas in whole numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.stft import compress, istft, stft
from dvpd.runtime.windows import LoudestStretch, Piece, WindowedStream, WindowPlan

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parents[2] / "engines"
PLAN = WindowPlan(
    window_samples=16384,
    context_samples=2048,
    fade_samples=1024,
    least_samples=8192,
    reminder_samples=4096,
)
NOISE = 0.25  # share of the process's noise
EVERY = 151  # one of so many samples is kept


def formula(n: int, offset: float = 0.0) -> np.ndarray:
    """Noise with a changing envelope, float32 [n]; signal() in the tests is the same."""
    i = np.arange(n, dtype=np.float64)
    noise = np.mod(i * 7919 + i * i * 13, 20011) / 20011 - 0.5
    return (noise * (0.05 + 0.6 * np.mod(i, 9001) / 9001) + offset).astype(np.float32)


class StandIn:
    """Networks by formula; networks() in the tests is the same."""

    name, device = "stand-in", "cpu"

    def predict(self, noisy: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Real and imaginary part, lowered; the magnitude as feats."""
        return noisy[:, :2] * np.float32(0.8), (noisy[:, 2:],)

    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        """A sum of everything that is given."""
        return 0.3 * xt + t[:, None, None, None] * feats[0] - np.float32(0.05)

    def predict_next(self, noisy, state):
        """As ``predict``, louder by a state that grows with the frames."""
        before = np.zeros((1, 1), np.float32) if state is None else state
        clean, feats = self.predict(noisy)
        return clean * (1 + before[:, 0]), feats, before + np.float32(0.0005 * noisy.shape[2])

    def score_next(self, xt, t, feats, tlb_skip, tlb_backbone, state):
        """As ``score``, and the state of that step."""
        before = np.zeros((1, 1), np.float32) if state is None else state
        sigma_z = self.score(xt, t, feats, tlb_skip, tlb_backbone) + before[:, 0] * t
        return sigma_z.astype(np.float32), before + np.float32(0.0005 * noisy_frames(xt))

    def close(self) -> None:
        """Nothing is held."""


def noisy_frames(x: np.ndarray) -> int:
    """Frames of [B, C, T, F]."""
    return x.shape[2]


def plain(values: Any) -> list[float]:
    """Numbers for JSON, with the digits that float32 has."""
    return [float(f"{x:.8g}") for x in np.asarray(values, np.float64).ravel()]


def windows() -> list[dict[str, Any]]:
    """Where windows lie and how they are joined, for lengths around their bounds."""
    rows = []
    for n in (1, 16384, 16385, 20000, 28673, 60001):
        calls: list[list[int]] = []

        def begin(wav: np.ndarray, first: int, calls: list[list[int]] = calls) -> Piece:
            calls.append([first * 128, first * 128 + wav.size])
            return lambda: wav * np.float32(0.5 + first / 100)

        stream = WindowedStream(begin, PLAN, 128)
        wav = formula(n)
        out = np.concatenate([piece() for piece in (*stream.push(wav), *stream.finish())])
        stretch = LoudestStretch(PLAN.reminder_samples, 128)
        stretch.push(wav)
        at = None if stretch.found is None else stretch.found.first_frame * 128
        rows.append({"n": n, "windows": calls, "loudest": at, "out": plain(out[::EVERY])})
    return rows


def enhanced() -> list[dict[str, Any]]:
    """Whole recordings through both models' ways."""
    rows = []
    cases = (
        ("dvpd-tiny", 3000, 3, 0.0),
        ("dvpd-tiny", 60001, 3, 0.05),
        ("dvpd-tiny", 60001, 0, 0.0),
        ("dvpd-live-tiny", 200, 1, 0.0),
        ("dvpd-live-tiny", 45001, 3, 0.0),
    )
    for model, n, steps, offset in cases:
        enhancer = Enhancer(Manifest.load(ENGINES / model), StandIn(), PLAN)
        out = enhancer.enhance(formula(n, offset), 16000, steps=steps, seed=7).wav
        rows.append(
            {"model": model, "n": n, "steps": steps, "offset": offset, "out": plain(out[::EVERY])}
        )
    return rows


def vectors() -> dict[str, Any]:
    """Everything that vectors.json holds."""
    manifest = Manifest.load(ENGINES / "dvpd-tiny")
    signal, sde, t_rs = manifest.signal, manifest.sde, manifest.sampler.t_rs
    noise = [(0, 0, 0), (7, 2, 129), ((1 << 64) - 1, 1, 75_000)]
    spectra = []
    for n in (100, 1000):
        wav = formula(n)
        spec = stft(wav, signal)
        back = istft(spec * 0.5, n, signal)
        compressed = compress(spec, signal)
        spectra.append({"n": n, "compressed": plain(compressed[:, ::3, ::5]), "half": plain(back)})
    start = initial_state(sde, t_rs)
    quieter = initial_state(sde, t_rs, NOISE)
    return {
        "every": EVERY,
        "plan": {
            "window": PLAN.window_samples,
            "context": PLAN.context_samples,
            "fade": PLAN.fade_samples,
            "least": PLAN.least_samples,
            "reminder": PLAN.reminder_samples,
        },
        "noise": [
            {"seed": str(s), "draw": d, "frame": f, "out": plain(frame_noise(s, d, f, 2)[:, ::4])}
            for s, d, f in noise
        ],
        "start": plain([start.w_x0, start.w_y, start.std]),
        "noise_share": NOISE,
        "start_share": plain([quieter.w_x0, quieter.w_y, quieter.std]),
        "steps_share": [
            plain([s.t, s.a, s.b, s.e, s.n]) for s in sampler_steps(sde, t_rs, 3, "euler", NOISE)
        ],
        "steps": {
            last: {
                str(count): [
                    plain([s.t, s.a, s.b, s.e, s.n]) for s in sampler_steps(sde, t_rs, count, last)
                ]
                for count in (1, 3)
            }
            for last in ("euler", "exact")
        },
        "spectra": spectra,
        "windows": windows(),
        "enhanced": enhanced(),
    }


def main() -> None:
    """Write the file beside this one."""
    text = json.dumps(vectors(), separators=(",", ":"))
    (HERE / "vectors.json").write_text(text.replace("},{", "},\n{") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
