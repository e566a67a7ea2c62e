"""``check_family`` (``family.py``) and its parts; the promises are listed in :mod:`metarl.envs.promises`."""
