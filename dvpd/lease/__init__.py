"""Train on a machine that is lent for a short time, has no network, and talks in short calls.

    python -m dvpd.lease pack PLAN.toml LEASE            # at home: folders for the calls to carry
    python3 -m dvpd.lease start LEASE/call-0 --started UNIX_TIME --minutes 15    # there; returns
    python3 -m dvpd.lease feed LEASE/call-1              # there: one more part of the data
    python3 -m dvpd.lease poll --out RESULTS --wait 20   # there: what is new, and a line of status
    python -m dvpd.lease collect FILES --into runs/lease # at home, after every poll

``pack`` prints the calls as they are to be made; ``rehearse`` makes all of them on this machine.

There, a supervisor goes through the phases: a smoke test; then side by side the data (taken as the
parts come, decoded once), the commands of the plan (an inference check, say) and a probe of every
way to make a training step; then training, one model after the other, to a deadline counted from
the ask. Every phase is a process group with a time limit. What happens is a line of rows.jsonl,
written through to the disk; a failure is a row, and the next thing is tried.
"""
