"""Many recordings: folders and manifests, in several processes, each file exactly once."""
