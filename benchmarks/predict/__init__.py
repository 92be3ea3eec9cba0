"""Estimates for devices that were not measured: published figures, roofline, calibration, display."""
