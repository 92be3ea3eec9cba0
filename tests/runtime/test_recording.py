"""The walk of one recording from file to file: how often it is read."""

from __future__ import annotations

import pytest
import soundfile

from dvpd.runtime import recording

pytest.importorskip("onnxruntime")


def test_a_recording_of_a_block_is_read_once(enhancer, speech, tmp_path, monkeypatch):
    source, made, reads = tmp_path / "in.wav", [], []
    soundfile.write(source, speech[:8000], 16000, "PCM_16")
    real = recording.read_blocks

    def counted(info):
        reads.append(info.n_samples)
        yield from real(info)

    monkeypatch.setattr(recording, "read_blocks", counted)
    for most, n_reads in ((8000, 1), (7999, 3)):  # levels, sound, and what is mixed back
        monkeypatch.setattr(recording, "BLOCK_SAMPLES", most)
        target = tmp_path / f"{most}.wav"
        done = enhancer.enhance_file(source, target, steps=0, mix=0.5)
        assert reads == [8000] * n_reads
        reads.clear()
        made.append((target.read_bytes(), done.taken_db, done.pause_taken_db))
    assert made[0] == made[1]
