"""What the enhancer returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from . import display
from .arrays import FloatArray
from .options import to_float

if TYPE_CHECKING:
    from .enhancer import Enhancer


@dataclass(frozen=True, repr=False, eq=False)
class Enhanced:
    """An enhanced waveform; in a notebook it shows itself: players and spectrograms.

    Attributes:
        wav: float32, the input's shape.
        sample_rate: The input's rate (Hz).
        nfe: Network calls for each window of audio: 1 + steps.
        seconds: Wall-clock time of the enhancement (s).
        noisy: The input as it was given (not a copy), for comparisons; None if it is not known.
    """

    wav: FloatArray
    sample_rate: int
    nfe: int
    seconds: float
    noisy: NDArray[Any] | None = None

    @property
    def duration_s(self) -> float:
        """Length of the waveform (s)."""
        return len(self.wav) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio (all channels)."""
        return self.seconds / self.duration_s

    def save(self, path: str | Path) -> Path:
        """Write the waveform; the file appears whole or not at all, and replaces an older one.

        Args:
            path: .wav (32-bit float: nothing is lost), .flac (24 bits), .ogg or .opus.

        Returns:
            The path.

        Raises:
            InputError: Unknown suffix, no such folder, a full disk, or a rate or number of channels
                that the format does not hold.
        """
        return display.save(self.wav, self.sample_rate, path)

    def __repr__(self) -> str:
        """One line without the samples."""
        channels = self.wav.shape[1] if self.wav.ndim == 2 else 1
        return (
            f"Enhanced({self.duration_s:.2f} s, {self.sample_rate} Hz, {channels} channel"
            f"{'s' * (channels > 1)}, {self.nfe} network call{'s' * (self.nfe > 1)}, "
            f"rtf {self.rtf:.3f})"
        )

    def _repr_html_(self) -> str:
        wavs: dict[str, FloatArray] = {}
        if self.noisy is not None:
            wavs["noisy"] = to_float(self.noisy[: display.SHOWN_S * self.sample_rate])
        return display.page(repr(self), wavs | {"enhanced": self.wav}, self.sample_rate)


@dataclass(frozen=True)
class EnhancedFile:
    """What happened to a file.

    Attributes:
        path: The file written.
        sample_rate: Its rate (Hz), that of the input.
        n_channels: Its channels, those of the input.
        n_samples: Its samples in each channel, those of the input.
        container: Its container, such as "WAV".
        subtype: Its encoding, such as "PCM_16".
        n_clipped: Values limited to full scale, as the encoding holds no more.
        nfe: Network calls for each window of audio: 1 + steps.
        seconds: Wall-clock time, reading and writing included (s).
        gaps: What is missing of a damaged recording that was salvaged, in words.
        left: What the output cannot carry of the input's tags and marks, in words.
        peaks: Largest magnitude of each channel, by which it was scaled for the model.
        taken_db: By how much the output is softer than the recording (dB); None for digital silence.
        pause_taken_db: The same where nobody speaks (``taken``); None where that is nowhere.
    """

    path: Path
    sample_rate: int
    n_channels: int
    n_samples: int
    container: str
    subtype: str
    n_clipped: int
    nfe: int
    seconds: float
    gaps: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    peaks: tuple[float, ...] = ()
    taken_db: float | None = None
    pause_taken_db: float | None = None

    @property
    def duration_s(self) -> float:
        """Length of the recording (s)."""
        return self.n_samples / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio (all channels)."""
        return self.seconds / self.duration_s

    def table(self, enhancer: Enhancer) -> dict[str, Any]:
        """What happened, and by which model, as JSON.

        Args:
            enhancer: The model.
        """
        return {
            "sample_rate": self.sample_rate,
            "channels": self.n_channels,
            "samples": self.n_samples,
            "duration_s": self.duration_s,
            "container": self.container,
            "subtype": self.subtype,
            "seconds": self.seconds,
            "rtf": self.rtf,
            "nfe": self.nfe,
            "clipped": self.n_clipped,
            "peak_dbfs": [_rounded(20.0 * math.log10(p) if p else None) for p in self.peaks],
            "taken_db": _rounded(self.taken_db),
            "pause_taken_db": _rounded(self.pause_taken_db),
            "gaps": list(self.gaps),
            "left": list(self.left),
            **model_table(enhancer),
        }


def _rounded(decibels: float | None) -> float | None:
    return None if decibels is None else round(decibels, 2)


def model_table(enhancer: Enhancer) -> dict[str, Any]:
    """Which model runs, and on what, as JSON.

    Args:
        enhancer: The loaded model.
    """
    return {
        "backend": enhancer.backend.name,
        "device": enhancer.backend.device,
        "model": enhancer.manifest.name,
        "model_version": enhancer.manifest.version,
        "precision": enhancer.manifest.precision,
    }
