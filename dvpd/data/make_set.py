"""The paper's test sets, made anew from the corpora (its Appendix C), and one of pauses.

``python -m dvpd.data.make_set NAME --speech DIR [--noise DIR] [--rir DIR] --out DIR``

Writes ``OUT/name/noisy`` and ``OUT/name/clean`` (FLAC, 16 kHz, 16 bit) and ``OUT/pairs.tsv`` with
everything that was drawn; ``python -m dvpd.evaluate MODEL --set OUT/name`` reads them. The drawn
values are not the paper's own, which nobody has: figures compare with it only on average. PAUSES also
writes ``OUT/pauses/pairs.tsv``, which says in which samples somebody speaks.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.random import Generator

from ..config import load_toml
from ..runtime import audio, command
from ..runtime.errors import InputError
from ..runtime.progress import Progress as Bar
from ..runtime.spec import SAMPLE_RATE
from . import degrade
from .chain import run_chain
from .degrade import Wav, rms
from .mix import make_rng
from .paired import match_names
from .pool import decode, find_audio
from .rooms import (
    Room,
    RoomRanges,
    as_room,
    draw_image_room,
    freeverb_room,
    measure_t60,
    reverberate,
)
from .sources import find_sides

COLUMNS = ("set", "file", "speech", "other", "degradation", "drawn")
CHAIN_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "paper.toml"

_SILENT_RMS = 1e-4
_NOISE_TRIES = 20
_PEAK = 0.99  # louder pairs are scaled down together to this
_SELECTION = 2**32 - 1  # stands where an item has its index: the draw of the files themselves

logger = logging.getLogger("dvpd.make_set")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpora:
    """What a set is made from.

    Attributes:
        clean: Clean recordings.
        noise: Noise recordings.
        rirs: Measured rooms.
    """

    clean: list[Path]
    noise: list[Path] = field(default_factory=list)
    rirs: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """A degraded recording and how it came about.

    Attributes:
        noisy: [L].
        clean: Its target [L].
        degradation: Group of the evaluation.
        other: Noise or room file.
        drawn: What was drawn.
    """

    noisy: Wav
    clean: Wav
    degradation: str
    other: str = ""
    drawn: dict[str, Any] = field(default_factory=dict)


def _band(value: float, edges: tuple[float, ...], text: str) -> str:
    """The group between two edges that a drawn value falls into."""
    at = min(max(int(np.searchsorted(edges, value, "right")), 1), len(edges) - 1)
    return text.format(edges[at - 1], edges[at])


def draw_noise(rng: Generator, files: list[Path], count: int) -> tuple[Wav, Path]:
    """A piece [count] of one of the files at 16 kHz; short files are repeated.

    Raises:
        InputError: A file cannot be read, or the files are silent.
    """
    for _ in range(_NOISE_TRIES):
        path = files[int(rng.integers(len(files)))]
        try:
            info = audio.probe(path)
            need = -(-count * info.sample_rate // SAMPLE_RATE) + 1
            first = int(rng.integers(max(info.n_samples - need, 0) + 1))
            wav, rate = audio.read_piece(info, first, need), info.sample_rate
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path} cannot be decoded: {why}") from error
        mono = wav.mean(axis=1)
        if rate != SAMPLE_RATE:
            mono = soxr.resample(mono, rate, SAMPLE_RATE)
        if len(mono) and np.isfinite(mono).all() and rms(mono) > _SILENT_RMS:
            return np.resize(mono, count).astype(np.float32), path
    raise InputError(f"{_NOISE_TRIES} pieces of noise were silent, the last from {path}")


VBD_RB_DAMPING = 0.05  # with it, 0.3 to 0.5 s are measured as 0.40 s on average


def vbd_rb(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """VBD-RB: artificial reverberation (combs and all-passes), T60 0.4 s on average.

    The paper gives neither the spread of T60 nor the ratio of direct to reverberant sound: here
    0.3 to 0.5 s and -3 to 9 dB, in one channel.
    """
    drawn = {"t60_s": rng.uniform(0.3, 0.5), "drr_db": rng.uniform(-3.0, 9.0)}
    room = freeverb_room(drawn["t60_s"], drawn["drr_db"], VBD_RB_DAMPING)
    drawn["measured_t60_s"] = measure_t60(room.response[1:])
    noisy, target = reverberate(clean, room)
    return Item(noisy, target, "reverb T60 0.4 s", drawn=drawn)


def vbdmd_sr(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """VBDMD-SR: 12th-order Butterworth low-pass at 4 kHz, without delay."""
    drawn = {"lowpass_hz": 4000.0, "order": 12}
    return Item(degrade.lowpass(clean, 4000.0, 12), clean, "low-pass 4 kHz", drawn=drawn)


def wsj0_ce3(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """WSJ0-CE3: noise of CHiME-3 at -6 to 14 dB."""
    snr_db = rng.uniform(-6.0, 14.0)
    noise, path = draw_noise(rng, corpora.noise, len(clean))
    group = _band(snr_db, (-6, -1, 4, 9, 14), "snr {} to {} dB")
    return Item(
        degrade.add_noise(clean, noise, snr_db), clean, group, path.name, {"snr_db": snr_db}
    )


WSJ0_RB_ROOMS = RoomRanges((5.0, 15.0), (2.0, 6.0), (0.4, 1.0), (3.5, 12.0))


def wsj0_rb(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """WSJ0-RB: rooms of 5 to 15 by 5 to 15 by 2 to 6 m, T60 0.4 to 1.0 s.

    The distances are chosen so that the ratio of direct to reverberant sound is about the paper's
    mean, -9 dB. It measured a T60 of 0.91 s on average; here the drawn one is reached.
    """
    room, drawn = draw_image_room(rng, WSJ0_RB_ROOMS)
    energy = room.response.astype(np.float64) ** 2
    direct = energy[: room.peak + 1].sum()
    drawn["drr_db"] = float(10.0 * np.log10(direct / (energy.sum() - direct)))
    noisy, target = reverberate(clean, room)
    group = _band(drawn["t60_s"], (0.4, 0.6, 0.8, 1.0), "reverb T60 {} to {} s")
    return Item(noisy, target, group, drawn=drawn)


def wsj0_uni(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """WSJ0-UNI: the chain of the paper's Table 6, its values those of ``configs/paper.toml``."""
    config = load_toml(CHAIN_CONFIG).data
    others: list[str] = []

    def noise() -> Wav:
        wav, path = draw_noise(rng, corpora.noise, len(clean))
        others.append(path.name)
        return wav

    def room(rng: Generator) -> tuple[Room, str]:
        if corpora.rirs and rng.random() < config.measured_rir_p:
            path = corpora.rirs[int(rng.integers(len(corpora.rirs)))]
            others.append(path.name)
            return as_room(decode(path) / np.float32(32768.0)), "measured"
        return freeverb_room(rng.uniform(*config.t60_s), rng.uniform(*config.drr_db)), "freeverb"

    noisy, target, drawn = run_chain(rng, config, clean, noise, room)
    families = {
        "noise": "snr_db" in drawn,
        "reverb": "room" in drawn,
        "narrow": "gsm" in drawn or "bandpass_hz" in drawn or drawn.get("rate_hz", 16000) < 16000,
        "clip": "clip_db" in drawn,
    }
    group = " + ".join(name for name, there in families.items() if there) or "mild"
    return Item(noisy, target, group, ", ".join(others), drawn)


PAUSES_S = 40.0
PAUSES_BETWEEN_S = (2.0, 12.0)
PAUSES_SNR_DB = (0.0, 5.0, 10.0, 20.0)
_ACTIVE_DB = -45.0  # under an utterance's loudest 10 ms: what is softer at its ends is cut off


def _decode_float(path: Path) -> Wav:
    """A recording as `decode` gives it, in [-1, 1)."""
    wav: Wav = decode(path).astype(np.float32) / np.float32(32768.0)
    return wav


def _spoken(wav: Wav) -> Wav:
    """An utterance without the silence before and behind it."""
    count = SAMPLE_RATE // 100
    blocks = wav[: len(wav) // count * count].reshape(-1, count)
    level = np.sqrt(np.mean(blocks**2, axis=1))
    active = np.flatnonzero(level > level.max(initial=0.0) * degrade.db_to_gain(_ACTIVE_DB))
    return wav[active[0] * count : (active[-1] + 1) * count] if len(active) else wav[:0]


def pauses(rng: Generator, clean: Wav, corpora: Corpora) -> Item:
    """PAUSES: 40 s, utterances 2 to 12 s apart, noise that goes on, at 0, 5, 10 or 20 dB.

    The first utterance is ``clean``, the others are drawn; all have the same level. The ratio is that
    of the speech, where somebody speaks, to the noise.
    """
    count = int(PAUSES_S * SAMPLE_RATE)
    target = np.zeros(count, np.float32)
    place = int(rng.uniform(*PAUSES_BETWEEN_S) * SAMPLE_RATE)
    utterance, spoken = clean, []
    while place < count:
        utterance = _spoken(utterance)[: count - place]
        if len(utterance) and rms(utterance) > _SILENT_RMS:
            utterance = utterance * np.float32(degrade.db_to_gain(-27.0) / rms(utterance))
            target[place : place + len(utterance)] = utterance
            spoken.append((place, place + len(utterance)))
        place += len(utterance) + int(rng.uniform(*PAUSES_BETWEEN_S) * SAMPLE_RATE)
        utterance = _decode_float(corpora.clean[int(rng.integers(len(corpora.clean)))])
    snr_db = float(rng.choice(PAUSES_SNR_DB))
    noise, path = draw_noise(rng, corpora.noise, count)
    heard = np.concatenate([target[a:b] for a, b in spoken]) if spoken else target
    noisy = target + noise * np.float32(degrade.noise_gain(heard, noise, snr_db))
    samples = " ".join(f"{first}-{last}" for first, last in spoken)
    drawn = {"snr_db": snr_db, "speech_samples": samples}
    return Item(noisy, target, f"snr {snr_db:g}", path.name, drawn)


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        make: Degrades one recording.
        needs_noise: Whether it takes noise recordings.
        corpus: What the paper's set was made from, or what to take.
    """

    make: Callable[[Generator, Wav, Corpora], Item]
    needs_noise: bool
    corpus: str


RECIPES = {
    "VBD-RB": Recipe(vbd_rb, False, "clean test utterances of VoiceBank+DEMAND"),
    "VBDMD-SR": Recipe(vbdmd_sr, False, "clean test utterances of VoiceBank+DEMAND"),
    "WSJ0-CE3": Recipe(wsj0_ce3, True, "WSJ0 si_et_05 and noise of CHiME-3's test part"),
    "WSJ0-RB": Recipe(wsj0_rb, False, "WSJ0 si_et_05"),
    "WSJ0-UNI": Recipe(wsj0_uni, True, "WSJ0 si_et_05 and noise"),
    "PAUSES": Recipe(
        pauses, True, "(not in the paper) any clean utterances, long recordings of noise"
    ),
}
SPEECH_COLUMNS = ("file", "snr_db", "noise_from", "speech_samples")


def make_items(
    recipe: Recipe, corpora: Corpora, seed: int, count: int | None
) -> Iterator[tuple[Path, Item | None]]:
    """Recordings in turn, each with what became of it; None where it is silent.

    Args:
        recipe: How the set is made.
        corpora: From what.
        seed: Seed of all draws: an item depends on it and on its place alone.
        count: Recordings taken at random, each once; None takes all.

    Raises:
        InputError: A file cannot be used.
    """
    files = corpora.clean
    if count is not None:
        picked = make_rng(seed, 0, _SELECTION).permutation(len(files))[:count]
        files = [files[i] for i in sorted(picked)]
    for index, path in enumerate(files):
        clean = _decode_float(path)
        if rms(clean) < _SILENT_RMS:
            yield path, None
        else:
            yield path, recipe.make(make_rng(seed, 0, index), clean, corpora)


def make_set(
    name: str,
    corpora: Corpora,
    out: str | Path,
    *,
    seed: int = 0,
    count: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a test set, whole or not at all.

    Args:
        name: One of ``RECIPES``.
        corpora: What it is made from.
        out: Folder to write; must not be there, or be empty.
        seed: Seed of all draws.
        count: Recordings to take; None for all.
        progress: Called with (items done, items in all).

    Returns:
        Number of pairs.

    Raises:
        InputError: The name is unknown, a corpus is missing or unusable, or ``out`` is taken.
        OSError: It cannot be written.
    """
    if name not in RECIPES:
        raise InputError(f"set {name!r}; expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if recipe.needs_noise and not corpora.noise:
        raise InputError(f"{name} needs noise recordings (--noise); the paper's: {recipe.corpus}")
    if count is not None and not 1 <= count <= len(corpora.clean):
        raise InputError(f"{count} of {len(corpora.clean)} recordings; expected 1 to all of them")
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is already there; name another folder, nothing is overwritten")
    total = len(corpora.clean) if count is None else count
    stem = name.lower()
    digits = len(str(total - 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    rows: list[tuple[str, ...]] = []
    try:
        for side in ("noisy", "clean"):
            (unfinished / stem / side).mkdir(parents=True)
        for path, item in make_items(recipe, corpora, seed, count):
            if item is None:
                logger.warning("left out: %s is silent", path)
            else:
                file = f"{stem}_{len(rows):0{digits}d}.flac"
                rows.append((stem, file, path.name, *_write(item, unfinished / stem, file)))
            if progress:
                progress(len(rows), total)
        if not rows:
            raise InputError(f"every recording is silent, such as {path}")
        with (unfinished / "pairs.tsv").open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table, delimiter="\t", lineterminator="\n")
            writer.writerows([COLUMNS, *rows])
        _write_speech(unfinished / stem / "pairs.tsv", rows)
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(rows)


def _write(item: Item, folder: Path, file: str) -> tuple[str, str, str]:
    peak = max(float(np.max(np.abs(w))) for w in (item.noisy, item.clean))
    scale = np.float32(min(1.0, _PEAK / max(peak, 1e-9)))
    for side, wav in (("noisy", item.noisy), ("clean", item.clean)):
        sf.write(str(folder / side / file), wav * scale, SAMPLE_RATE, subtype="PCM_16")
    drawn = {**item.drawn, "scale": float(scale)}
    return item.other, item.degradation, json.dumps(drawn, default=float)


def _write_speech(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Where somebody speaks, for a set that says so."""
    lines = []
    for _, file, _, other, _, text in rows:
        drawn = json.loads(text)
        if "speech_samples" in drawn:
            lines.append((file, f"{drawn['snr_db']:g}", other, drawn["speech_samples"]))
    if lines:
        with path.open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table, delimiter="\t", lineterminator="\n")
            writer.writerows([SPEECH_COLUMNS, *lines])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    sets = "\n".join(f"  {name:10}{recipe.corpus}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        prog="dvpd.data.make_set",
        description=f"Make one of the paper's test sets, or one of pauses.\n\nset       made in the paper from\n{sets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", type=str.upper, choices=list(RECIPES), metavar="NAME")
    clean = parser.add_mutually_exclusive_group(required=True)
    clean.add_argument("--speech", help="folder of clean recordings")
    clean.add_argument("--pairs", help="folder with noisy/ and clean/: its clean side is taken")
    parser.add_argument("--noise", help="folder of noise recordings")
    parser.add_argument("--rir", help="folder of measured rooms (WSJ0-UNI)")
    parser.add_argument("--out", required=True, help="folder to write; must not be there yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="recordings to take (default: all)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _make)


def _make(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}; expected 0 or more")
    if args.pairs is not None:
        clean = [pair[1] for pair in match_names(*find_sides(Path(args.pairs)))]
    else:
        clean = find_audio(args.speech)
    corpora = Corpora(
        clean,
        find_audio(args.noise) if args.noise else [],
        find_audio(args.rir) if args.rir else [],
    )
    with Bar(args.name) as bar:
        made = make_set(
            args.name, corpora, args.out, seed=args.seed, count=args.count,
            progress=lambda done, total: bar(done / total, f"{done} of {total}"),
        )  # fmt: skip
    sys.stdout.write(f"{Path(args.out) / args.name.lower()}: {made} pairs\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
