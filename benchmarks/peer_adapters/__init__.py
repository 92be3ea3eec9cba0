"""Other enhancers as ``peers.py`` runs them: an adapter each, in a process of its own."""
