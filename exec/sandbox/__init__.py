"""What keeps a stranger's job from everything on this machine but computing: layers of the Linux kernel, and proof."""
