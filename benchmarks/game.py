"""The score of whole games of Atari, as the game counts it: ``python -m benchmarks.game CrazyClimber MODEL -o FILE``.

Lives do not end an episode and rewards are not cut, whatever training had. Actions are drawn from the policy as it is,
without adaptation; where no model is named they are uniform, which is the score to compare with. MODEL is a file that
training with the lineage ``sb3`` and the full action set wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import metarl
from benchmarks.measure import circumstances
from metarl.envs import make_family
from metarl.envs.views.vec_env import FamilyVecEnv

SEED = 1


def scores(game: str, model: str | None, n: int) -> list[float]:
    """Return the scores of ``n`` whole games that are played side by side."""
    family = make_family("Atari-v0", lineage="sb3", full_action_set=True, terminal_on_life_loss=False, reward_clip=0)
    player = None if model is None else metarl.load(model)
    env = FamilyVecEnv(family, family.validate_tasks({"game": [game]}), n, seed=SEED)
    rng, total, over = np.random.default_rng(SEED), np.zeros(n), np.zeros(n, dtype=bool)
    obs: Any = env.reset()
    while not over.all():
        if player is None:
            actions = rng.integers(env.action_space.n, size=n)  # type: ignore[attr-defined]
        else:
            actions, _ = player.predict(obs, deterministic=False)
        obs, rewards, dones, _ = env.step(actions)
        total += np.where(over, 0.0, rewards)
        over |= dones
    env.close()
    return [float(value) for value in total]


def main() -> None:
    """Play, print the mean with its interval over games, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="its name, as docs/atari.md has it")
    parser.add_argument("model", nargs="?", help="a checkpoint; without one actions are uniform")
    parser.add_argument("-n", type=int, default=20, help="games (default 20)")
    parser.add_argument("-o", "--output", type=Path, help="write the record here as JSON")
    args = parser.parse_args()
    found = scores(args.game, args.model, args.n)
    half = 1.96 * float(np.std(found, ddof=1)) / args.n**0.5
    print(f"{args.game}, {args.model or 'uniform actions'}: {np.mean(found):,.0f} ±{half:,.0f} over {args.n} games")
    if args.output:
        steps = None if args.model is None else metarl.load(args.model).num_timesteps
        record = {"command": "python -m benchmarks.game", **circumstances(), "game": args.game, "scores": found}
        args.output.write_text(json.dumps({**record, "num_timesteps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
