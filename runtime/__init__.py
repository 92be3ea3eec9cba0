"""The light runtime of DVPD: waveform in, enhanced waveform out; NumPy and one engine."""
