"""Mutated headers of every format: an answer in one line, no crash, no hang, no silent loss.

``python tests/runtime/fuzz_containers.py SECONDS`` runs for that long, each file in a child process
that may crash or hang, and prints what was wrong. ``test_fuzz.py`` runs a few hundred mutations and
the corpus of what was found.
"""

from __future__ import annotations

import io
import random
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from dvpd.runtime import InputError, audio

FORMATS = (
    ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"),
    ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "FLOAT"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("SVX", "PCM_16"),
    ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("AVR", "PCM_16"),
)  # fmt: skip
N_SAMPLES = 6000
HANG_S = 20.0
VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds():
    """(name, bytes) of a short recording in every format."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(N_SAMPLES)
    for container, subtype in FORMATS:
        data = io.BytesIO()
        soundfile.write(data, noise, 16000, subtype, format=container)
        yield f"{container}-{subtype}", data.getvalue()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a header, cut, double or insert: one to three times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = int(rng.random() ** 3 * len(out))  # headers more often than samples
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[place] = rng.randrange(256)
        elif kind == 1:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(VALUES) & ((1 << 8 * size) - 1)
            out[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            del out[place : place + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            out[place:place] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        elif kind == 5:
            out += bytes(out[:place] if rng.random() < 0.5 else out)
        else:
            out[place : place + 64] = bytes(min(64, len(out) - place))
    return bytes(out[: 1 << 20])


def judge(path: Path) -> str:
    """What happens to a file: "read", "refused" or "salvaged".

    Raises:
        AssertionError: It is read to another length than was said, or an error is not one line.
        Exception: Anything but an InputError is a fault.
    """
    outcome, said = _read(path, salvage=False)
    if outcome == "refused" and "--salvage" in said:
        return "salvaged" if _read(path, salvage=True)[0] == "read" else "refused"
    return outcome


def _read(path: Path, salvage: bool) -> tuple[str, str]:
    said = ""
    try:
        info = audio.probe(path, salvage=salvage)
        assert sum(len(block) for block in audio.read_blocks(info)) == info.n_samples
        for container in ("WAV", "FLAC"):
            audio.collect_extras(info, container)
        return "read", said
    except InputError as error:
        said = str(error)
    assert said.isprintable(), said
    assert str(path) in said, said
    return "refused", said


def child(folder: Path, seed: int, count: int) -> None:
    """Judge ``count`` mutations; the file at work lies in the folder if the process dies."""
    import logging

    logging.getLogger("dvpd").setLevel(logging.CRITICAL)
    rng = random.Random(seed)
    table = list(seeds())
    outcome = {"read": 0, "refused": 0, "salvaged": 0}
    for index in range(count):
        name, data = rng.choice(table)
        path = folder / f"{name}-{seed}-{index}.bin"
        path.write_bytes(mutate(data, rng))
        (folder / "now").write_text(path.name)
        begin = time.monotonic()
        try:
            outcome[judge(path)] += 1
        except Exception as error:
            print(f"FAULT {path}: {type(error).__name__}: {error}", flush=True)
            continue
        if (spent := time.monotonic() - begin) > HANG_S / 4:
            print(f"SLOW {path}: {spent:.1f} s", flush=True)
            continue
        path.unlink()
    print(outcome, flush=True)


def main() -> None:
    """Run children until the time is over."""
    import subprocess
    import tempfile

    seconds = float(sys.argv[1])
    folder = Path(tempfile.mkdtemp(prefix="dvpd-fuzz-"))
    begin, seed, total = time.monotonic(), int(time.time()), 0
    while time.monotonic() - begin < seconds:
        seed += 1
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fuzz_containers as f"
        code += f"; from pathlib import Path; f.child(Path({str(folder)!r}), {seed}, 200)"
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            print("HANG", folder / (folder / "now").read_text(), flush=True)
            continue
        total += 200
        for line in done.stdout.splitlines():
            print(line, flush=True)
        if done.returncode:
            print(
                "CRASH",
                done.returncode,
                folder / (folder / "now").read_text(),
                done.stderr[-300:],
                flush=True,
            )
    print(f"{total} files in {time.monotonic() - begin:.0f} s; kept in {folder}")


if __name__ == "__main__":
    main()
