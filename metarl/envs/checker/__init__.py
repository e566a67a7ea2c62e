"""The parts of :func:`metarl.envs.check.check_family`; the promises are listed in :mod:`metarl.envs.promises`."""
