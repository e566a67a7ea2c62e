"""The commands of the command line, a module each, whose `run(args)` does the work and returns the exit code."""
