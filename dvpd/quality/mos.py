"""Quality without a reference: DNSMOS and WV-MOS from model files given by path.

The models are not part of this project. DNSMOS (Reddy et al. 2021, 2022): ``sig_bak_ovr.onnx`` and
``model_v8.onnx`` of the DNS-Challenge repository, folder DNSMOS/DNSMOS. Scores are those of its
``dnsmos_local.py`` (not personalised).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import BackendError, InputError
from ..runtime.spec import SAMPLE_RATE

SEGMENT_S = 9.01
DNSMOS_FILES = ("sig_bak_ovr.onnx", "model_v8.onnx")
DNSMOS_NAMES = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808")
DNSMOS_SOURCE = "https://github.com/microsoft/DNS-Challenge, folder DNSMOS/DNSMOS (CC BY 4.0)"
N_MELS, MEL_N_FFT, MEL_HOP = 120, 321, 160
# The networks' raw outputs to scores, P.835: coefficients of x^2, x, 1.
_CALIBRATION = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos_ovrl": (-0.06766283, 1.11546468, 0.04602535),
}


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError(f"{path.name} needs ONNX Runtime: pip install 'dvpd[cpu]'") from None
    options = onnxruntime.SessionOptions()
    # One thread: files are measured in parallel, and figures do not depend on how many.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has no common base of its errors
        raise InputError(f"{path} is no model that ONNX Runtime loads: {error}") from error


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale to Hz: linear below 1 kHz (15 mel), logarithmic above."""
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27))


@cache
def mel_filters() -> NDArray[np.float32]:
    """Triangular filters of unit area [N_MELS, MEL_N_FFT // 2 + 1], Slaney's scale, 0 to 8 kHz."""
    top = 15.0 + 27.0 * np.log(SAMPLE_RATE / 2 / 1000.0) / np.log(6.4)
    edges = _hz(np.linspace(0.0, top, N_MELS + 2))
    bins = np.fft.rfftfreq(MEL_N_FFT, 1.0 / SAMPLE_RATE)
    ramps = edges[:, None] - bins
    widths = np.diff(edges)[:, None]
    triangles = np.maximum(0.0, np.minimum(-ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def mel_features(wav: NDArray[np.floating]) -> NDArray[np.float32]:
    """Input of the P.808 network: mel power in dB below the maximum, (dB + 40) / 40.

    Args:
        wav: [L] at 16 kHz.

    Returns:
        float32 [1 + (L - 1) // 160, 120]; at least -1 (80 dB below the maximum).
    """
    padded = np.pad(np.asarray(wav, np.float64), MEL_N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, MEL_N_FFT)[::MEL_HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(MEL_N_FFT) / MEL_N_FFT)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 @ mel_filters().T
    floor = 1e-10
    db = 10 * np.log10(np.maximum(power, floor)) - 10 * np.log10(max(power.max(), floor))
    out: NDArray[np.float32] = ((np.maximum(db, -80.0) + 40) / 40).astype(np.float32)
    return out


class Dnsmos:
    """DNSMOS P.835 (signal, background, overall) and P.808."""

    def __init__(self, folder: str | Path) -> None:
        """Load both models.

        Args:
            folder: Holds ``DNSMOS_FILES``.

        Raises:
            InputError: A model is missing or damaged.
            BackendError: ONNX Runtime is missing.
        """
        paths = [Path(folder) / name for name in DNSMOS_FILES]
        if missing := [p.name for p in paths if not p.is_file()]:
            raise InputError(
                f"{folder} lacks {' and '.join(missing)}; expected the DNSMOS models there, from "
                f"{DNSMOS_SOURCE}"
            )
        self._p835, self._p808 = map(_session, paths)

    def __call__(self, wav: NDArray[np.floating]) -> dict[str, float]:
        """Scores of one recording, the mean over segments of 9.01 s, one a second.

        Args:
            wav: [L] at 16 kHz, in [-1, 1]; repeated until it fills a segment. DNSMOS hears level.

        Returns:
            ``DNSMOS_NAMES`` -> score, about 1 to 5.
        """
        return self.of_blocks([wav])

    def of_blocks(self, blocks: Iterable[NDArray[np.floating]]) -> dict[str, float]:
        """The same of a recording that comes in blocks, of which ten seconds are kept.

        Args:
            blocks: [l] each, at 16 kHz.

        Returns:
            As of a call.
        """
        length = int(SEGMENT_S * SAMPLE_RATE)
        total, n_scored, second = np.zeros(len(DNSMOS_NAMES)), 0, 0

        def walk(held: NDArray[np.floating], least: int) -> NDArray[np.floating]:
            nonlocal total, n_scored, second
            while len(held) >= least:
                # Rounding of the end is the public script's: it skips what comes out too short.
                n = int((second + SEGMENT_S) * SAMPLE_RATE) - second * SAMPLE_RATE
                if n >= length:
                    total = total + self._scores(held[:n])
                    n_scored += 1
                second += 1
                held = held[SAMPLE_RATE:]
            return held

        rest: NDArray[np.floating] = np.zeros(0, np.float32)
        for block in blocks:
            # the public script asks for a whole second behind a segment, but for the first
            rest = walk(np.concatenate([rest, block]), 10 * SAMPLE_RATE)
        if not second:
            while len(rest) < length:
                rest = np.append(rest, rest)
            rest = walk(rest, 10 * SAMPLE_RATE)
            if not second:
                walk(rest, length)
        return dict(zip(DNSMOS_NAMES, (total / n_scored).tolist(), strict=True))

    def _scores(self, segment: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of one segment, in the order of ``DNSMOS_NAMES``."""
        p835 = self._p835.run(None, {"input_1": segment.astype(np.float32)[None]})[0][0]
        scores = [np.polyval(c, x) for c, x in zip(_CALIBRATION.values(), p835, strict=True)]
        features = mel_features(segment[:-MEL_HOP])[None]
        return np.array([*scores, self._p808.run(None, {"input_1": features})[0][0][0]])


class WvMos:
    """WV-MOS (Andreev et al. 2023, HiFi++): a wav2vec 2.0 network that predicts a mean opinion.

    No weights come with this project, and its author's checkpoint is a pickle that is never loaded
    here. Convert it once, where it is trusted, to ONNX or TorchScript: input float32 [1, L] at
    16 kHz, output one number. What its feature extractor does (zero mean, unit variance) belongs
    into the file. The figures are as good as that conversion; nothing here can check it.
    """

    def __init__(self, path: str | Path) -> None:
        """Load the model.

        Args:
            path: .onnx file, or a TorchScript file.

        Raises:
            InputError: It is missing, damaged, or has several inputs.
            BackendError: ONNX Runtime is missing.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"{file}: no such WV-MOS model; expected an .onnx or TorchScript file")
        self._path = file
        if file.suffix.lower() == ".onnx":
            session = _session(file)
            names = [tensor.name for tensor in session.get_inputs()]
            if len(names) != 1:
                raise InputError(f"{file} has inputs {names}; expected one, float32 [1, L]")
            name = names[0]

            def run_onnx(wav: NDArray[np.float32]) -> Any:
                return session.run(None, {name: wav})[0]

            self._run = run_onnx
            return
        import torch

        try:
            with warnings.catch_warnings():  # deprecated, and still what such models come as
                warnings.simplefilter("ignore", DeprecationWarning)
                module = torch.jit.load(str(file), map_location="cpu").eval()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{file} is no TorchScript file: {reason}") from error

        def run(wav: NDArray[np.float32]) -> Any:
            with torch.inference_mode():
                return module(torch.from_numpy(wav)).numpy()

        self._run = run

    def __call__(self, wav: NDArray[np.floating]) -> dict[str, float]:
        """The score of one recording under "wv_mos".

        Args:
            wav: [L] at 16 kHz.

        Raises:
            InputError: The model does not take [1, L], or returns more than one number.
        """
        try:
            score = np.asarray(self._run(np.ascontiguousarray(wav, np.float32)[None]))
        except Exception as error:  # either library raises what it likes
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self._path} does not take float32 [1, {len(wav)}]: {reason}"
            ) from None
        if score.size != 1:
            raise InputError(f"{self._path} returned {list(score.shape)}; expected one number")
        return {"wv_mos": float(score.reshape(()))}
