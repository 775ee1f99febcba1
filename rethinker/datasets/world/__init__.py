"""The visual-math world: questions about drawn images, with answers and derivations."""
