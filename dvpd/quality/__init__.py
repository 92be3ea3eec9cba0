"""What ``python -m dvpd.evaluate`` is made of: measures, systems, statistics, reports."""
