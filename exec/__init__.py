"""What a job is and how it runs on this machine. Knows nothing of networks, signatures or prices."""
