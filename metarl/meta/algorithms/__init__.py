"""The meta-wrappers, one file each."""
