"""The filter in LiveKit's own classes: frames, a track, its audio stream."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

rtc = pytest.importorskip(
    "livekit.rtc", reason="livekit is not installed: pip install 'dvpd[livekit]'"
)

from dvpd.integrations.livekit import NoiseFilter  # noqa: E402  # after the check for the package


def frame(pcm: np.ndarray, rate: int):
    return rtc.AudioFrame(
        pcm.tobytes(), rate, pcm.shape[1], len(pcm), userdata={"from": "somebody"}
    )


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (44100, 2), (48000, 1)])
def test_frames_of_any_rate_come_back_like_they_went_in(networks_worker, rate, channels):
    worker, _ = networks_worker
    noise_filter = NoiseFilter(worker)
    given = frame(np.full((rate // 100, channels), 1000, np.int16), rate)
    for out in (noise_filter._process(given), asyncio.run(noise_filter.process(given))):
        assert (out.sample_rate, out.num_channels) == (rate, channels)
        assert out.samples_per_channel == given.samples_per_channel
        assert out.userdata == {"from": "somebody"}
    noise_filter._close()


def test_a_frame_with_a_longer_buffer_is_read_to_its_end(networks_worker):
    noise_filter = NoiseFilter(networks_worker[0])
    noise_filter.enabled = False
    given = rtc.AudioFrame(np.arange(200, dtype=np.int16).tobytes(), 16000, 1, 160)
    assert list(noise_filter._process(given).data) == list(range(160))


def test_own_loops_get_the_stream_itself(networks_worker, pcm):
    worker, _ = networks_worker

    async def hear(noise_filter):
        parts = [pcm[i : i + 160] for i in range(0, len(pcm), 160)]
        return [await noise_filter.process(frame(part, 16000)) for part in parts]

    out = np.concatenate([f.data for f in asyncio.run(hear(NoiseFilter(worker, mix=0.0)))])
    np.testing.assert_array_equal(out[896:], pcm[:-896, 0])  # the input itself, as late


def test_a_track_is_filtered_while_it_is_heard(networks_worker):
    """A source, a local track, LiveKit's own audio stream: no server, in real time."""
    worker, networks = networks_worker

    async def hear() -> list[int]:
        source = rtc.AudioSource(48000, 1)
        track = rtc.LocalAudioTrack.create_audio_track("t", source)
        noise_filter = NoiseFilter(worker, buffer_ms=0.0)
        stream = rtc.AudioStream(
            track, sample_rate=48000, num_channels=1, noise_cancellation=noise_filter
        )
        loud = frame(np.full((480, 1), 1000, np.int16), 48000)
        seen = []
        for enabled in (True, False):
            noise_filter.enabled = enabled
            for _ in range(6):
                await source.capture_frame(loud)
                event = await asyncio.wait_for(stream.__anext__(), 30.0)
                seen.append(event.frame.samples_per_channel)
        await stream.aclose()
        await source.aclose()
        assert noise_filter.sound._sound is None  # the stream has closed it
        return seen

    sizes = asyncio.run(hear())
    assert set(sizes) == {480}
    assert networks.batches
