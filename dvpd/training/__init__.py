"""Training of both branches: objective, steps, state, log and the processes that share the work."""
