"""Recordings in and out, and their blocks: the names of three modules in one place."""

from .audio_in import (
    BLOCK_SAMPLES,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    AudioInfo,
    check_file,
    check_rate,
    probe,
    read_blocks,
    read_piece,
    read_whole,
)
from .audio_out import (
    OUTPUT_FORMATS,
    AudioWriter,
    check_paths,
    check_suffix,
    collect_extras,
    encode,
    limited,
    output_format,
    read_texts,
    target_in,
)
from .blocks import Resampler, check_finite

__all__ = [
    "BLOCK_SAMPLES",
    "MAX_RATE_HZ",
    "MIN_RATE_HZ",
    "OUTPUT_FORMATS",
    "AudioInfo",
    "AudioWriter",
    "Resampler",
    "check_file",
    "check_finite",
    "check_paths",
    "check_rate",
    "check_suffix",
    "collect_extras",
    "encode",
    "limited",
    "output_format",
    "probe",
    "read_blocks",
    "read_piece",
    "read_texts",
    "read_whole",
    "target_in",
]
