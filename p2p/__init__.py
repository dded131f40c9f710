"""How bytes move between machines, who said them, and the words of the wire. Knows nothing of GPUs."""
