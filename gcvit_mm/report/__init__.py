"""One page about a training: what it did, how good it is, and where it fails."""
