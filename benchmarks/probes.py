"""What a model does to what it was not trained for: silence, music, whispers, two talkers, ...

    python benchmarks/probes.py                                # the default engine
    python benchmarks/probes.py engines/dvpd-tiny --markdown probes.md --audio heard/
    python benchmarks/probes.py engines/dvpd-tiny OLD/dvpd-tiny --scenes --json scenes.json

Each probe is made by formula or from the recordings of tests/assets, so the table is the same
everywhere. A gain of 0 dB lets a sound pass, -40 dB removes it; for what is speech, PESQ and SI-SDR
are against the input itself: how much is lost where there is nothing to gain. A second table has the
faults of real recordings (``scenes.py``): a quieter talker, far speech, a telephone, loud events,
noise that nobody speaks in. With ``--scenes`` it is the only one, of the predictive branch alone: a
minute for an engine, to compare weights with. ``--noise`` adds a folder of recordings in which nobody
speaks: how far each is lowered.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, recordings, tables
from dvpd.benchmarks.common.recordings import ASSETS, RATE_HZ
from dvpd.benchmarks.common.scenes import FLOOR_DB, Scene, at_level, level_db, make_scenes
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.engines import default_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole

FORMAT = "dvpd-probes-1"
SECONDS = 3.0
MUSIC_S = 10.0
NOISE_CLIPS = (0, 3)
# Name -> steps; None for the engine's default, or one step where that is none.
SYSTEMS: dict[str, int | None] = {"predictive": 0, "full": None}
NOISE_S = 6.0
NOISE_LEAST_DB = -70.0  # softer recordings are silence
LPC_ORDER = 18
CLICK = 2.0  # largest step between samples, out over in, from which a click is reported
DC = 1e-3


@dataclass(frozen=True)
class Probe:
    """One sound.

    Attributes:
        name: What it is.
        wav: float32 [L] at 16 kHz.
        speech: Whether PESQ and SI-SDR against ``wanted`` mean something.
        wanted: What ought to come out, [L]; None for the input itself.
    """

    name: str
    wav: FloatArray
    speech: bool = False
    wanted: FloatArray | None = None


def whisper(speech: FloatArray, rng: np.random.Generator, frame: int = 512) -> FloatArray:
    """Whispered speech: the spectral envelope of ``speech`` [L], its voice replaced by noise.

    Linear prediction of order 18 in overlapping frames; the residual becomes noise of its level.
    """
    from scipy.linalg import solve_toeplitz
    from scipy.signal import lfilter

    hop, window = frame // 2, np.hanning(frame + 1)[:-1]
    padded = np.pad(speech.astype(np.float64), (hop, frame))
    out = np.zeros(len(padded))
    for start in range(0, len(padded) - frame, hop):
        piece = padded[start : start + frame] * window
        r = np.correlate(piece, piece, "full")[frame - 1 : frame + LPC_ORDER]
        if r[0] < 1e-9:
            continue
        a = solve_toeplitz(r[:-1] + r[0] * 1e-4 * (np.arange(LPC_ORDER) == 0), r[1:])
        residual = lfilter(np.concatenate([[1.0], -a]), [1.0], piece)
        noise = rng.standard_normal(frame) * np.sqrt(np.mean(residual**2))
        out[start : start + frame] += lfilter([1.0], np.concatenate([[1.0], -a]), noise) * window
    return out[hop : hop + len(speech)].astype(np.float32)


def chords(rng: np.random.Generator, seconds: float = SECONDS) -> FloatArray:
    """Music: struck strings, four chords, partials that decay the faster the higher they are."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    out = np.zeros_like(t)
    roots = (220.0, 174.61, 261.63, 196.0)  # A minor, F, C, G
    for i, root in enumerate(roots):
        start = i * seconds / len(roots)
        since = np.maximum(t - start, 0.0)
        for ratio in (1.0, 1.26, 1.5, 2.0):
            for n in range(1, 12):
                f = root * ratio * n
                if f < 7500.0:
                    phase = rng.uniform(0, 2 * np.pi)
                    partial = np.sin(2 * np.pi * f * since + phase) * np.exp(-since * (1 + 0.7 * n))
                    out += (t >= start) * np.minimum(since * 200.0, 1.0) * partial / n
    return out.astype(np.float32)


def _smooth_noise(rng: np.random.Generator, low_hz: float, high_hz: float, n: int) -> FloatArray:
    spec = np.fft.rfft(rng.standard_normal(n))
    freqs = np.fft.rfftfreq(n, 1 / RATE_HZ)
    spec *= (freqs > low_hz) * (freqs < high_hz) / np.maximum(freqs, 1.0) ** 0.5
    return np.fft.irfft(spec, n).astype(np.float32)


def breath(rng: np.random.Generator, seconds: float = SECONDS) -> FloatArray:
    """Two breaths: noise of 0.3 to 6 kHz that swells and falls within 0.7 s."""
    n = int(seconds * RATE_HZ)
    t = np.arange(n) / RATE_HZ
    envelope = sum(
        np.where(np.abs(t - c) < 0.35, np.cos(np.pi * (t - c) / 0.7) ** 2, 0.0) for c in (0.7, 2.1)
    )
    return (_smooth_noise(rng, 300.0, 6000.0, n) * envelope).astype(np.float32)


def laughter(rng: np.random.Generator, seconds: float = SECONDS) -> FloatArray:
    """Laughter-like: voiced bursts with breath, five a second, falling in pitch from 300 Hz."""
    n = int(seconds * RATE_HZ)
    t = np.arange(n) / RATE_HZ
    pitch = 300.0 * np.exp(-0.2 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    formants = ((700.0, 120.0), (1200.0, 150.0), (2600.0, 250.0))
    voice = np.zeros(n)
    for k in range(1, 20):
        gain = sum(1.0 / (1.0 + ((k * pitch - f) / b) ** 2) for f, b in formants)
        voice += gain * np.sin(k * phase) * (k * pitch < 7000.0)
    cycle = (t * 5.0) % 1.0
    gate = np.clip(np.sin(np.pi * np.minimum(cycle / 0.6, 1.0)), 0.0, 1.0)
    air = _smooth_noise(rng, 500.0, 5000.0, n)
    return at_level(voice / np.std(voice) * gate + 0.3 * air / np.std(air) * gate, -25.0)


def clicks(seconds: float = SECONDS) -> FloatArray:
    """Four single-sample clicks a second."""
    wav = np.zeros(int(seconds * RATE_HZ), np.float32)
    wav[RATE_HZ // 8 :: RATE_HZ // 4] = 0.5
    return wav


def read_speech(folder: Path = ASSETS) -> list[FloatArray]:
    """Clean speech of different talkers: the loudest 3 s of a recording each.

    Raises:
        InputError: The recordings are not there.
    """
    import soundfile

    paths = [folder / f"clip{i}_clean.flac" for i in (0, 2, 3)]
    if missing := [p.name for p in paths if not p.is_file()]:
        raise InputError(f"{folder} has no {missing[0]}; run this in a checkout, or give --speech")
    count = int(SECONDS * RATE_HZ)
    found = []
    for path in paths:
        wav = soundfile.read(path, dtype="float32")[0]
        energy = np.concatenate([[0.0], np.cumsum(np.square(wav, dtype=np.float64))])
        first = int(np.argmax(energy[count:] - energy[:-count])) if len(wav) > count else 0
        found.append(wav[first : first + count])
    return found


def make_probes(speech: Sequence[FloatArray]) -> list[Probe]:
    """All probes.

    Args:
        speech: Clean speech of three talkers, [L] each.
    """
    rng = np.random.default_rng(0)
    n = int(SECONDS * RATE_HZ)
    a, b, c = (at_level(wav, -25.0) for wav in speech)
    both = a[: min(len(a), len(c))] + c[: min(len(a), len(c))]
    half = len(b) // 2
    step = b * np.where(np.arange(len(b)) < half, 1.0, 0.1).astype(np.float32)
    tone = np.sin(2 * np.pi * 1000.0 * np.arange(n) / RATE_HZ)
    return [
        Probe("digital silence", np.zeros(n, np.float32)),
        Probe("noise floor at -70 dB", at_level(rng.standard_normal(n), -70.0)),
        Probe("white noise at -30 dB", at_level(rng.standard_normal(n), -30.0)),
        Probe("clean speech", a, True),
        Probe("clean speech at -55 dB", at_level(b, -55.0), True),
        Probe("clean speech on an offset of 0.1", a + np.float32(0.1), True, a),
        Probe("clean speech that falls by 20 dB", step, True),
        Probe("two talkers at equal level", both, True),
        Probe("whispered speech", at_level(whisper(a, rng), -35.0)),
        Probe("breath", at_level(breath(rng), -40.0)),
        Probe("laughter-like bursts", laughter(rng)),
        Probe("music: struck strings", at_level(chords(rng), -25.0)),
        Probe("tone of 1 kHz", at_level(tone, -25.0)),
        Probe("clicks, four a second", clicks()),
    ]


def measure(probe: Probe, out: FloatArray) -> dict[str, Any]:
    """What became of a probe.

    Args:
        probe: The sound.
        out: [L], what a model made of it.

    Returns:
        "in_db", "gain_db" (None for silence in), "loudest_gain_db" of the loudest tenth of 20 ms
        blocks, "dc", "clicks", and for speech "pesq" and "si_sdr".
    """
    from dvpd.quality.metrics import pesq_wb, si_sdr

    wanted = probe.wav if probe.wanted is None else probe.wanted
    level = level_db(probe.wav)
    result: dict[str, Any] = {"in_db": level, "out_db": level_db(out)}
    silent = level <= FLOOR_DB
    result["gain_db"] = None if silent else result["out_db"] - level_db(wanted)
    block = RATE_HZ // 50
    powers = [
        np.square(x[: len(x) // block * block].astype(np.float64)).reshape(-1, block).mean(1)
        for x in (wanted, out)
    ]
    loud = powers[0] >= np.quantile(powers[0], 0.9)
    result["loudest_gain_db"] = (
        None if silent
        else 10.0 * float(np.log10((powers[1][loud].sum() + 1e-30) / powers[0][loud].sum()))
    )  # fmt: skip
    result["dc"] = float(np.mean(out, dtype=np.float64))
    steps = [float(np.abs(np.diff(x)).max()) for x in (probe.wav, out)]
    result["clicks"] = steps[1] > CLICK * steps[0] and steps[1] > 1e-3
    if probe.speech:
        result |= {"pesq": pesq_wb(wanted, out), "si_sdr": si_sdr(wanted, out)}
    return result


def run(folder: Path, probes: Sequence[Probe], backend: str = "auto") -> list[dict[str, Any]]:
    """Every probe through an engine: the predictive branch alone, and the full sampler.

    Args:
        folder: Engine folder.
        probes: From ``make_probes``.
        backend: See ``Enhancer.open``.

    Returns:
        Rows with "name", "predictive", "full" (figures of ``measure``) and "wavs".

    Raises:
        DvpdError: The engine cannot be opened or fails.
    """
    rows = []
    with Enhancer.open(folder, backend) as enhancer:
        for probe in probes:
            row: dict[str, Any] = {"name": probe.name, "wavs": {"in": probe.wav}}
            for system, steps in SYSTEMS.items():
                count = enhancer.manifest.sampler.score_steps if steps is None else steps
                out = enhancer.enhance(probe.wav, RATE_HZ, steps=count).wav
                row[system] = measure(probe, out)
                row["wavs"][system] = out
            rows.append(row)
    return rows


def run_scenes(
    folder: Path,
    scenes: Sequence[Scene],
    backend: str = "auto",
    systems: Mapping[str, int | None] = SYSTEMS,
) -> list[dict[str, Any]]:
    """Every scene through an engine.

    Args:
        folder: Engine folder.
        scenes: From ``make_scenes``.
        backend: See ``Enhancer.open``.
        systems: Name -> steps, as in ``SYSTEMS``.

    Returns:
        Rows with "name", "figures" (figure -> "in" and each system -> number, None where it is not
        defined) and "wavs".

    Raises:
        DvpdError: The engine cannot be opened or fails.
    """
    rows = []
    with Enhancer.open(folder, backend) as enhancer:
        for scene in scenes:
            wavs = {"in": scene.wav}
            for system, steps in systems.items():
                count = enhancer.manifest.sampler.score_steps if steps is None else steps
                wavs[system] = enhancer.enhance(scene.wav, RATE_HZ, steps=count).wav
            found = {system: scene.figures(wav) for system, wav in wavs.items()}
            figures = {
                name: {k: f[name] if np.isfinite(f[name]) else None for k, f in found.items()}
                for name in found["in"]
            }
            rows.append({"name": scene.name, "figures": figures, "wavs": wavs})
    return rows


def run_noises(folder: Path, paths: Sequence[Path], backend: str = "auto") -> dict[str, float]:
    """How far recordings in which nobody speaks are lowered by the predictive branch.

    Args:
        folder: Engine folder.
        paths: Recordings of noise; the first ``NOISE_S`` of each, at -30 dB.
        backend: See ``Enhancer.open``.

    Returns:
        File name -> dB, at most 60; silent files are left out.

    Raises:
        DvpdError: The engine or a file cannot be used.
    """
    from dvpd.data.pool import decode
    from dvpd.quality.pauses import measure_levels

    found = {}
    with Enhancer.open(folder, backend) as enhancer:
        for path in paths:
            wav = decode(path)[: int(NOISE_S * RATE_HZ)].astype(np.float32) / 32768.0
            if level_db(wav) > NOISE_LEAST_DB:
                wav = at_level(wav, -30.0)
                out = enhancer.enhance(wav, RATE_HZ, steps=0).wav
                silence = np.zeros_like(wav)
                found[path.name] = measure_levels(wav, silence, out, ())["pause_lowered"]
    return found


def noise_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """One line an engine: the middle, the weakest tenth, and the weakest recordings by name."""
    lines = []
    for name, files in found.items():
        values = np.array(list(files.values()))
        weakest = sorted(files, key=lambda file: files[file])[:3]
        median, tenth = np.percentile(values, (50, 10))
        lines.append(
            [name, len(values), f"{median:.1f}", f"{tenth:.1f}", f"{np.mean(values >= 30.0):.0%}",
             ", ".join(f"{file} {files[file]:.1f}" for file in weakest)]
        )  # fmt: skip
    head = ["noise alone", "recordings", "lowered by, median, dB", "weakest tenth, dB",
            "30 dB and more", "weakest"]  # fmt: skip
    return tables.markdown(head, lines)


def scene_table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table of one engine's scenes."""
    lines = []
    for row in rows:
        for i, (figure, values) in enumerate(row["figures"].items()):
            cells = ["-" if v is None else f"{v + 0.0:.1f}" for v in values.values()]
            lines.append([row["name"] if i == 0 else "", figure, *cells])
    systems = list(rows[0]["wavs"])[1:]
    return tables.markdown([f"{name}: scene", "what", "in the input", *systems], lines)


def to_markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table of one engine."""

    def text(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = []
    for row in rows:
        p, f = row["predictive"], row["full"]
        odd = []
        if any(x["clicks"] for x in (p, f)):
            odd.append("clicks")
        if any(abs(x["dc"]) > DC for x in (p, f)):
            odd.append("offset")
        lines.append(
            [row["name"], text(p["in_db"], 0), text(p["gain_db"]), text(f["gain_db"]),
             text(f["loudest_gain_db"]), text(f.get("pesq"), 2), text(f.get("si_sdr")),
             ", ".join(odd)]
        )  # fmt: skip
    head = [f"{name}: probe", "in, dB", "gain, predictive", "gain, full", "of its loudest tenth",
            "PESQ", "SI-SDR, dB", "seen"]  # fmt: skip
    return tables.markdown(head, lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="probes.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", type=Path, help="default: the default engine")
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--speech", type=Path, default=ASSETS, help="folder of clipN_{clean,noisy}.flac"
    )
    parser.add_argument(
        "--scenes", action="store_true", help="the second table alone, predictive branch alone"
    )
    parser.add_argument("--noise", type=Path, help="folder of noise recordings, measured alone")
    parser.add_argument(
        "--limit", type=command.whole(0), default=0, help="evenly spaced ones of them"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    parser.add_argument("--audio", type=Path, metavar="DIR", help="write every sound as FLAC")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def _main(args: argparse.Namespace) -> int:
    speech = read_speech(args.speech)
    probes = make_probes(speech)
    pairs = [recordings.read_clip(i, args.speech) for i in NOISE_CLIPS]
    noises = [noisy - clean for noisy, clean in pairs]
    scenes = make_scenes(speech, noises, chords(np.random.default_rng(0), MUSIC_S))
    parts: list[str] = []
    result: dict[str, Any] = {}
    result_scenes: dict[str, Any] = {}
    systems = {"predictive": 0} if args.scenes else SYSTEMS
    noise_files: list[Path] = []
    if args.noise:
        from dvpd.data.pool import find_audio
        from dvpd.quality.pairs import spread_sample

        noise_files = spread_sample(find_audio(args.noise), args.limit)
    alone: dict[str, dict[str, float]] = {}
    for folder in args.engines or [default_engine()]:
        rows = [] if args.scenes else run(folder, probes, args.backend)
        more = run_scenes(folder, scenes, args.backend, systems)
        name = folder.name if folder.name not in result else str(folder)  # an older one of a name
        parts += [to_markdown(name, rows)] if rows else []
        parts += [scene_table(name, more)]
        if noise_files:
            alone[name] = run_noises(folder, noise_files, args.backend)
        result[name], result_scenes[name] = (
            [{k: v for k, v in row.items() if k != "wavs"} for row in each] for each in (rows, more)
        )
        if args.audio:
            _write_audio(args.audio / name.replace("/", "-"), [*rows, *more])
    parts += [noise_table(alone)] if alone else []
    text = "\n\n".join(parts)
    print(text)
    if args.markdown:
        write_whole(args.markdown, text + "\n")
    if args.json:
        report = {"format": FORMAT, "created": machine.now(), "machine": machine.machine(),
                  "versions": machine.versions(), "engines": result, "scenes": result_scenes, "noises": alone}  # fmt: skip
        write_whole(args.json, json.dumps(report, indent=1) + "\n")
    return 0


def _write_audio(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        stem = "".join(ch if ch.isalnum() else "-" for ch in row["name"].lower())
        for kind, wav in row["wavs"].items():
            soundfile.write(folder / f"{stem}.{kind}.flac", np.clip(wav, -1.0, 1.0), RATE_HZ)


if __name__ == "__main__":
    command.leave(main())
