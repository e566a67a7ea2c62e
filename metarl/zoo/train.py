"""Entry point of ``python -m metarl.zoo.train``, as RL-Zoo3's users type it."""

from metarl.zoo.__main__ import script

if __name__ == "__main__":
    script("train")
