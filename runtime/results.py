"""What the enhancer returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from . import display
from .arrays import FloatArray
from .options import to_float


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

    @property
    def duration_s(self) -> float:
        """Length of the recording (s)."""
        return self.n_samples / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio (all channels)."""
        return self.seconds / self.duration_s
