"""Speed, cost and quality reports."""
