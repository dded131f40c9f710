"""Being the first peer: the seed, the default peers and the set-up script."""
