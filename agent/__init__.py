"""What peers agree on, remember and show: joins `p2p` and `exec` into one agent."""
