"""Shipped training configurations (TOML)."""
