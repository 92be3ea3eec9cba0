"""What the exported graphs promise: signal constants, tensors and presets.

Training and export import this module, the runtime enforces it; every constant is written here once. Tensors are [B, channels, T frames, F bins].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_whole, number
from .errors import InputError
from .schedule import (
    LAST_STEPS,
    InitialState,
    SamplerStep,
    SdeSpec,
    check_share,
    initial_state,
    sampler_steps,
)

GRAPH_NAMES = ("predictive", "score")
ESTIMATE = "estimate"  # the predictive graph without the feats; it has no file of its own
PRECISIONS = ("fp32", "fp16")

SAMPLE_RATE = 16000  # Hz, of every model and of every measure
MAX_CHANNELS = 64  # of a recording
STREAM_RATES_HZ = (8000, 192000)  # least and most of a stream
FRAME_MULTIPLE = 4  # two unshuffles by 2 along time
MIN_FRAMES = 32
N_FEATS = 6
N_FREQS = 257
SEED_MAX = (1 << 64) - 1  # of the noise
STATE, NEXT_STATE = "state", "next_state"  # of a causal model's graphs
BLOCK_STATES = (
    "state",
    "score_state",
)  # of its graph of one block: names of the parts, state.0 ...
TLB_SHAPE = (2, 2)  # [level (outer, deep), band (below 2 kHz, above)]


@dataclass(frozen=True)
class SignalSpec:
    """The short-time Fourier transform and the power-law compression around the graphs.

    Attributes:
        sample_rate: Samples a second (Hz).
        n_fft: Transform and window length (samples).
        hop_length: Distance between frames (samples).
        window: Only "hann_periodic": the symmetric one caps reconstruction near 59 dB.
        compress_factor: Factor f of the compressed magnitude f * |X|^p.
        compress_exponent: Exponent p, in (0, 1].
    """

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 512
    hop_length: int = 128
    window: str = "hann_periodic"
    compress_factor: float = 0.3
    compress_exponent: float = 0.3

    def __post_init__(self) -> None:
        """Refuse values that the front end cannot honour."""
        for name in ("sample_rate", "n_fft", "hop_length"):
            check_whole("signal", name, getattr(self, name), 1)
        if self.n_fft % (2 * self.hop_length):
            raise InputError(
                f"signal hop_length is {self.hop_length}; expected a divisor of n_fft / 2 = "
                f"{self.n_fft // 2}, so that windows overlap-add exactly"
            )
        if self.window != "hann_periodic":
            raise InputError(f"signal window is {self.window!r}; expected 'hann_periodic'")
        for name in ("compress_factor", "compress_exponent"):
            if not number("signal", name, getattr(self, name)) > 0.0:
                raise InputError(f"signal {name} is {getattr(self, name)}; expected > 0")
        if self.compress_exponent > 1.0:
            raise InputError(
                f"signal compress_exponent is {self.compress_exponent}; expected at most 1"
            )

    @property
    def n_freqs(self) -> int:
        """Frequency bins of one frame."""
        return self.n_fft // 2 + 1

    @property
    def frame_rate_hz(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def n_frames(self, n_samples: int) -> int:
        """Frames of a centred transform of ``n_samples`` samples, before padding."""
        return 1 + n_samples // self.hop_length


def padded_frames(n_frames: int) -> int:
    """Smallest frame count that the graphs accept and that holds ``n_frames`` frames."""
    return max(MIN_FRAMES, -(-n_frames // FRAME_MULTIPLE) * FRAME_MULTIPLE)


OUTPUT_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus")  # of recordings that can be written
DATA_SUFFIXES = (".opus", ".flac", ".wav", ".ogg")  # of recordings to train and to evaluate on
MAX_PHASE_ROUNDS = 100  # 2 bring most of what many bring


def check_phase_rounds(where: str, value: object) -> int:
    """``value`` as the number of rounds of ``phase.to_waveform``.

    Args:
        where: Table of the option, for the message; may be empty.
        value: What was given.

    Raises:
        InputError: It is no whole number, or out of range.
    """
    rounds = check_whole(where, "phase_rounds", value, 0)
    if rounds > MAX_PHASE_ROUNDS:
        name = f"{where} phase_rounds".strip()
        raise InputError(f"{name} is {rounds}; expected 0 to {MAX_PHASE_ROUNDS}")
    return rounds


@dataclass(frozen=True)
class SamplerSpec:
    """Defaults of the sampler (paper section 4.2); the shipped models take alpha = 0.7.

    Attributes:
        t_rs: Start time of the reverse process, in (0, 1).
        n_steps: Calls of the score network; 0 for the predictive network alone.
        alpha: Weight of the predictive magnitude in the fusion, in [0, 1].
        last_step: "euler" as in Algorithm 1, or "exact": what the network's noise says that x0 is
            (``schedule.sampler_steps``). A score network is trained through one of them.
        phase_rounds: How often the result's phase is brought nearer to its magnitude (``phase``);
            0 leaves the networks' phase. Not for causal models.
        noise: Share of the process's noise that the sampler's states get, in [0, 1]. 1 is Algorithm
            1; with 0 the states are the predictive estimate and the noisy magnitude alone, the same
            for every seed. A score network is trained with one of them.
    """

    t_rs: float = 0.12
    n_steps: int = 3
    alpha: float = 0.4
    last_step: str = "euler"
    phase_rounds: int = 0
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("t_rs", "alpha"):
            number("sampler", name, getattr(self, name))
        if not 0.0 < self.t_rs < 1.0:
            raise InputError(f"sampler t_rs is {self.t_rs}; expected 0 < t_rs < 1")
        check_whole("sampler", "n_steps", self.n_steps, 0)
        check_phase_rounds("sampler", self.phase_rounds)
        check_share(self.noise)
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"sampler alpha is {self.alpha}; expected 0 <= alpha <= 1")
        if self.last_step not in LAST_STEPS:
            raise InputError(
                f"sampler last_step is {self.last_step!r}; expected one of {', '.join(LAST_STEPS)}"
            )

    @property
    def score_steps(self) -> int:
        """Steps of whoever is to see the score network at work: ``n_steps``, or one where that is 0."""
        return max(self.n_steps, 1)

    def start(self, sde: SdeSpec) -> InitialState:
        """Coefficients of the first state of a process."""
        return initial_state(sde, self.t_rs, self.noise)

    def steps(self, sde: SdeSpec, count: int | None = None) -> tuple[SamplerStep, ...]:
        """Coefficients of the reverse steps of a process.

        Args:
            sde: The process.
            count: Number of steps; None: ``n_steps``.

        Raises:
            InputError: ``count`` is no whole number of 0 or more.
        """
        count = self.n_steps if count is None else count
        return sampler_steps(sde, self.t_rs, count, self.last_step, self.noise)


@dataclass(frozen=True)
class CausalSpec:
    """What is special about a causal model: it runs on blocks of frames and carries a state.

    Attributes:
        lookahead_blocks: Blocks by which its output comes late.
        block_frames: Frames of a block, the unit of its input.
        state_size: Floats of each graph's state, for one stream: "predictive" and "score".
        latency_samples: Samples by which the output of a stream comes late at most, computing left
            out.
    """

    lookahead_blocks: int
    state_size: Mapping[str, int]
    latency_samples: int
    block_frames: int = FRAME_MULTIPLE

    def __post_init__(self) -> None:
        """Refuse values that describe no causal model."""
        table = self.state_size
        if not isinstance(table, Mapping) or set(table) != set(GRAPH_NAMES):
            raise InputError(
                f"state_size is {table!r}; expected one number for each of {GRAPH_NAMES}"
            )
        numbers = {
            "lookahead_blocks": (self.lookahead_blocks, 0),
            "block_frames": (self.block_frames, 1),
            "latency_samples": (self.latency_samples, 1),
            **{f"state_size {name}": (size, 1) for name, size in table.items()},
        }
        for name, (value, least) in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; expected a whole number >= {least}")
        object.__setattr__(self, "state_size", MappingProxyType(dict(table)))

    @property
    def lookahead_frames(self) -> int:
        """Frames by which the output comes late."""
        return self.lookahead_blocks * self.block_frames


def stream_latency(signal: SignalSpec, lookahead_blocks: int) -> int:
    """Samples by which the output of a stream comes late at most, computing left out.

    Block j of four frames needs samples up to 512 j + 640 and makes the output final up to
    512 j + 256: 896 samples, and 512 for each block of look-ahead.
    """
    block = FRAME_MULTIPLE * signal.hop_length
    return signal.n_fft // 2 + signal.hop_length + (1 + lookahead_blocks) * block


Factors = tuple[tuple[float, float], tuple[float, float]]


def _factors(value: object, what: str) -> Factors:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged
        array = np.empty(0)
    # Numbers only: text such as "2.0" and booleans are mistakes in a JSON file.
    numeric = array.shape == TLB_SHAPE and array.dtype.kind in "iuf"
    if not numeric or not bool(np.all(np.isfinite(array))):
        raise InputError(
            f"{what} is {value!r}; expected 2 x 2 finite numbers, [[outer below 2 kHz, outer "
            "above], [deep below, deep above]]"
        )
    (a, b), (c, d) = array.astype(np.float64).tolist()
    return (a, b), (c, d)


@dataclass(frozen=True)
class TlbFactors:
    """The eight training-free factors of the score network (paper section 3.4).

    Attributes:
        skip: [2 levels, 2 bands]; row 0 = the outer level, column 0 = below 2 kHz.
        backbone: [2 levels, 2 bands], likewise.
    """

    skip: Factors = ((1.0, 1.0), (1.0, 1.0))
    backbone: Factors = ((1.0, 1.0), (1.0, 1.0))

    def __post_init__(self) -> None:
        """Turn what was given into 2 x 2 tuples of floats, or refuse it."""
        object.__setattr__(self, "skip", _factors(self.skip, "tlb skip"))
        object.__setattr__(self, "backbone", _factors(self.backbone, "tlb backbone"))

    @classmethod
    def from_mapping(cls, value: Mapping[str, Any]) -> TlbFactors:
        """Read {"skip": [[..], [..]], "backbone": [[..], [..]]}.

        Args:
            value: Mapping with exactly these two keys.

        Raises:
            InputError: Keys, shapes or numbers are not as described.
        """
        if not isinstance(value, Mapping) or set(value) != {"skip", "backbone"}:
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"tlb has keys {got}; expected exactly 'skip' and 'backbone'")
        return cls(skip=value["skip"], backbone=value["backbone"])

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The graph inputs tlb_skip and tlb_backbone, float32 [2, 2] each."""
        return np.array(self.skip, np.float32), np.array(self.backbone, np.float32)


TLB_PRESETS: Mapping[str, TlbFactors] = MappingProxyType(
    {
        # Paper appendix; tuned there on the authors' weights.
        "severe": TlbFactors(skip=((4.1, 0.5), (2.0, 0.8)), backbone=((1.5, 1.0), (2.5, 1.0))),
        "moderate": TlbFactors(skip=((2.0, 2.0), (1.5, 1.5)), backbone=((1.5, 1.5), (2.5, 2.5))),
        "mild": TlbFactors(skip=((1.0, 1.2), (1.0, 1.1)), backbone=((1.0, 1.1), (1.0, 1.2))),
        "none": TlbFactors(),
    }
)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Tensor name in the graph.
        dtype: NumPy dtype name.
        shape: Sizes; "B" and "T" are dynamic, None is free (set by the model's width).
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


PREDICTIVE_INPUTS = (TensorSpec("noisy", "float32", ("B", 3, "T", N_FREQS)),)
SCORE_OUTPUTS = (TensorSpec("sigma_z", "float32", ("B", 1, "T", N_FREQS)),)


def feat_specs(precision: str) -> tuple[TensorSpec, ...]:
    """The tensors feat_0 ... feat_5; float16 in fp16 graphs, else float32."""
    dtype = "float16" if precision == "fp16" else "float32"
    return tuple(TensorSpec(f"feat_{i}", dtype, ("B", None, None, None)) for i in range(N_FEATS))


def predictive_outputs(precision: str = "fp32") -> tuple[TensorSpec, ...]:
    """Outputs of the predictive graph: clean_ri, then the feats."""
    return (TensorSpec("clean_ri", "float32", ("B", 2, "T", N_FREQS)), *feat_specs(precision))


def score_inputs(precision: str = "fp32") -> tuple[TensorSpec, ...]:
    """Inputs of the score graph: xt, t, the feats and the TLB factors."""
    return (
        TensorSpec("xt", "float32", ("B", 1, "T", N_FREQS)),
        TensorSpec("t", "float32", ("B",)),
        *feat_specs(precision),
        TensorSpec("tlb_skip", "float32", TLB_SHAPE),
        TensorSpec("tlb_backbone", "float32", TLB_SHAPE),
    )


PREDICTIVE_OUTPUTS = predictive_outputs()
SCORE_INPUTS = score_inputs()


def graph_io(
    graph: str, precision: str, causal: CausalSpec | None = None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of one graph.

    Args:
        graph: "predictive", "score", or ``ESTIMATE`` of a model that is not causal.
        precision: "fp32" or "fp16".
        causal: Of a causal model, whose graphs have a ``state`` and a ``next_state``, float32 in both
            precisions; T is then any multiple of 4.

    Raises:
        InputError: Unknown graph or precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if graph == ESTIMATE and causal is None:
        return PREDICTIVE_INPUTS, PREDICTIVE_OUTPUTS[:1]
    if graph not in GRAPH_NAMES:
        raise InputError(f"graph is {graph!r}; expected one of {', '.join(GRAPH_NAMES)}")
    inputs: tuple[TensorSpec, ...] = PREDICTIVE_INPUTS
    outputs = predictive_outputs(precision)
    if graph == "score":
        inputs, outputs = score_inputs(precision), SCORE_OUTPUTS
    if causal is None:
        return inputs, outputs
    shape = ("B", causal.state_size[graph])
    before, after = (TensorSpec(name, "float32", shape) for name in (STATE, NEXT_STATE))
    return (*inputs, before), (*outputs, after)
