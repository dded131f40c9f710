"""What this software calls itself on the wire: name, major, minor and patch."""

SOFTWARE = "coppermesh/0.1.0"
