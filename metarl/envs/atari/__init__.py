"""Atari games as tasks, on the emulators of the Arcade Learning Environment."""
