"""Atari: frames and training frames per second: ``python -m benchmarks.atari -o benchmarks/results/atari.json``.

Frames: the family's ``VecEnv`` with given actions, and rollouts with a policy, beside ALE's own vector environment with
as many copies and threads, the same actions or the same policy. Both play whole games without the fire button, because
an env step after a lost life is two or three further ones for the family, as it is in SB3, which ALE does not play.
Training: our A2C beside stock SB3's on one game, with
equal copies, unroll, optimiser and frames. SB3's frames are of ``make_atari_env`` where OpenCV is installed; otherwise
Pillow resizes them in the same wrappers, which the record says. Leap: a path of 50,000 env steps of A2C, watched and
not, in turn by segments; memory before and after. ``--parts frames learning leap`` chooses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from PIL import Image
from stable_baselines3 import A2C as StockA2C
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from benchmarks.measure import SEED, Row, circumstances, interleave, judged, paired_ratio
from benchmarks.memory import status
from metarl.agents.learners.a2c import A2C
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel, available_cores, library_torch
from metarl.agents.sampling.rollouts import Copies
from metarl.envs.atari.family import Atari
from metarl.envs.atari.games import ROMS
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.params import expand
from metarl.streams import seed_sequence, stream

FRAMES_TARGET, TRAINING_TARGET, LEAP_TARGET = 0.9, 1.5, 1.05
UNROLL = 5
LEAP_STEPS, LEAP_COPIES, LEAP_ROUNDS = 50_000, 32, 10
WHOLE_GAMES: dict[str, Any] = {"terminal_on_life_loss": False, "fire_on_reset": False}
"""How both sides play where frames are counted."""
PARTS = ("frames", "learning", "leap")


def raw(family: Atari, game: int, n_envs: int) -> AtariVectorEnv:
    """Return ALE's vector environment, with a thread for each core, as the family plays."""
    c = family.constants
    return AtariVectorEnv(
        ROMS[game],
        n_envs,
        num_threads=available_cores(),
        grayscale=c.observation == "grey",
        stack_num=c.n_stack,
        frameskip=c.frame_skip,
        noop_max=c.noop_max,
        reward_clipping=False,
        use_fire_reset=False,
        autoreset_mode="SameStep",  # the family's copies begin anew in the env step that ends a game too
    )


class Pillow(gymnasium.ObservationWrapper[Any, Any, Any]):
    """SB3's ``WarpFrame``, without OpenCV."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 1), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        image = Image.fromarray(observation).convert("L").resize((84, 84), Image.Resampling.BOX)
        return np.asarray(image)[:, :, None]


def stock_envs(game: str, n_envs: int) -> VecEnv:
    """Return what SB3 learns Atari on."""
    if atari_wrappers.cv2 is not None:
        return VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", n_envs, seed=SEED), 4)

    def make() -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = Monitor(gymnasium.make(f"{game}NoFrameskip-v4"))
        env = atari_wrappers.MaxAndSkipEnv(atari_wrappers.NoopResetEnv(env), 4)
        env = atari_wrappers.EpisodicLifeEnv(env)
        if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
            env = atari_wrappers.FireResetEnv(env)
        return atari_wrappers.ClipRewardEnv(Pillow(env))

    return VecFrameStack(DummyVecEnv([make] * n_envs), 4)


def in_turn(sides: dict[str, Callable[[], Any]], case: str, frames: int, rounds: int, target: float) -> Row:
    """Return the row that compares the first side's rate with the second's."""
    timings = interleave(sides, rounds)
    ours, theirs = timings.values()
    ratio, low, high = paired_ratio(theirs, ours)
    rates = {f"{name}, frames/s": round(frames / timing.seconds) for name, timing in timings.items()}
    cpu = {"cpu_ratio": theirs.cpu_seconds / ours.cpu_seconds, "least": low, "greatest": high}
    return {"case": case, **rates, **judged(ratio, target, at_least=True), **cpu}


def stepping(family: Atari, game: str, n_envs: int, n_steps: int, rounds: int) -> Row:
    """Time env steps with given actions."""
    tasks = family.validate_tasks({"game": [game]})
    index = int(tasks["game"][0])
    view, theirs = FamilyVecEnv(family, tasks, n_envs, seed=SEED), raw(family, index, n_envs)
    view.reset(), theirs.reset(seed=SEED)
    space: Any = view.action_space
    actions = stream(SEED, "atari").integers(space.n, size=(n_steps, n_envs))
    sides = {
        "FamilyVecEnv": lambda: deque(map(view.step, actions), maxlen=0),  # nobody keeps frames, which fill new memory
        "ALE": lambda: deque(map(theirs.step, actions), maxlen=0),
    }
    frames = n_steps * n_envs * family.constants.frame_skip
    row = in_turn(sides, f"{game}, {n_envs} copies, given actions", frames, rounds, FRAMES_TARGET)
    theirs.close()
    return row


@library_torch()  # as in training
def collecting(family: Atari, game: str, n_envs: int, n_steps: int, rounds: int) -> Row:
    """Time rollouts: the policy and the critic judge every observation."""
    tasks = family.validate_tasks({"game": [game]})
    index = int(tasks["game"][0])
    space = family.spaces({"game": index})
    policy = FunctionalPolicy("CnnPolicy", *space, critic=True)
    params = expand(policy.init(SEED), 1)
    copies = Copies.of(family, policy, tasks, [seed_sequence(SEED, "atari")], n_envs, Parallel())  # as in training
    theirs = raw(family, index, n_envs)
    first, _ = theirs.reset(seed=SEED)
    shown = [first]

    def loop() -> None:
        rng = np.random.default_rng(SEED)
        with torch.inference_mode():
            for _ in range(n_steps):
                seen = shown[0] if family.constants.observation == "grey" else shown[0][:, 0].transpose(0, 3, 1, 2)
                distribution, _ = policy.judge(params, torch.from_numpy(np.ascontiguousarray(seen)[None]))
                noise = rng.random((1, n_envs), dtype=np.float32)
                shown[0] = theirs.step(distribution.sample(torch.from_numpy(noise)).numpy()[0])[0]

    sides = {"rollouts": lambda: copies.collect(params, n_steps), "ALE and the same policy": loop}
    frames = n_steps * n_envs * family.constants.frame_skip
    row = in_turn(sides, f"{game}, {n_envs} copies, rollouts with a policy", frames, rounds, FRAMES_TARGET)
    theirs.close()
    return row


def learner_of(family: Atari, game: str, n_envs: int, **settings: Any) -> tuple[Any, FunctionalPolicy, Copies, Any]:
    """Return A2C on rollouts, its policy, fresh copies of the game, and what turns a rollout into samples."""
    tasks = family.validate_tasks({"game": [game]})
    policy = FunctionalPolicy("CnnPolicy", *family.spaces({"game": tasks["game"][0]}), critic=True)
    parallel = Parallel()
    learner = A2C(policy, n_steps=UNROLL, n_envs=n_envs, parallel=parallel, **settings)
    assert learner.continuing is not None
    copies = Copies.of(family, policy, tasks, [seed_sequence(SEED, "atari")], n_envs, parallel)
    return learner, policy, copies, learner.continuing.process


def learning(game: str, n_envs: int, n_updates: int, rounds: int) -> Row:
    """Time whole updates of A2C, ours and SB3's."""
    family = Atari("sb3")
    settings = {"ent_coef": 0.01}
    learner, policy, copies, process = learner_of(family, game, n_envs, **settings, optimizer_kwargs={"eps": 1e-5})
    states = [learner.start(expand(policy.init(SEED), 1))]

    @library_torch()
    def ours() -> None:
        for update in range(n_updates):
            samples = process(copies.collect(states[0].params, UNROLL, keep=True))
            spent = replace(states[0], spent=True)  # as in training
            states[0] = learner.update(spent, samples, 7e-4, [seed_sequence(SEED, "update", update)])

    stock = StockA2C("CnnPolicy", stock_envs(game, n_envs), n_steps=UNROLL, seed=SEED, device="cpu", **settings)
    total = n_updates * UNROLL * n_envs
    sides = {"A2C": ours, "SB3's A2C": lambda: stock.learn(total, reset_num_timesteps=False)}
    frames = total * family.constants.frame_skip
    row = in_turn(sides, f"{game}, {n_envs} copies, learning", frames, rounds, TRAINING_TARGET)
    return {**row, "SB3's frames": "make_atari_env" if atari_wrappers.cv2 is not None else "its wrappers, Pillow"}


@library_torch()  # as in training
def watching(game: str, n_steps: int) -> Row:
    """Time a path of A2C that Leap watches beside one that it does not, and look at memory while it grows.

    Updates on one rollout are taken twice, watched and not, so that both meet the same minutes and the same games.
    """
    family = Atari("leap")
    learner, policy, copies, process = learner_of(family, game, LEAP_COPIES, ent_coef=0.01, optimizer="rmsprop")
    start = expand(policy.init(SEED), 1)
    watcher = LeapWatcher(LeapMetric("energy"), [name for name in start if not name.startswith("features_extractor")])
    states = {"watched": learner.start(start)}
    states["plain"] = states["watched"]
    seconds = {"watched": 0.0, "plain": 0.0, "collecting": 0.0}
    n_updates = -(-n_steps // (UNROLL * LEAP_COPIES))
    resident: list[float] = []
    for update in range(n_updates):
        began = time.process_time()
        samples = process(copies.collect(states["watched"].params, UNROLL, keep=True))
        seconds["collecting"] += time.process_time() - began
        for name in ("watched", "plain") if update % 2 else ("plain", "watched"):
            began = time.process_time()
            seeds = [seed_sequence(SEED, "update", update)]
            states[name] = learner.update(states[name], samples, 1e-4, seeds, watcher if name == "watched" else None)
            seconds[name] += time.process_time() - began
        if update % max(1, n_updates // LEAP_ROUNDS) == 0:
            resident.append(status("VmRSS") / 2**20)
    watcher.close()
    ratio = (seconds["collecting"] + seconds["watched"]) / (seconds["collecting"] + seconds["plain"])
    return {
        "case": f"{game}, Leap's path of {n_updates * UNROLL * LEAP_COPIES:,} env steps of A2C",
        "segments": watcher.n_segments,
        **{f"{name}, CPU s": each for name, each in seconds.items()},
        **judged(ratio, LEAP_TARGET, at_least=False),
        "resident MB": [round(each, 1) for each in resident],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--copies", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=100, help="env steps of a copy in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2])
    parser.add_argument("--path", type=int, default=LEAP_STEPS, help="env steps of Leap's path")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: list[Row] = []
    for n_envs in args.copies:
        if "frames" in args.parts:
            for family in (Atari("leap", **WHOLE_GAMES), Atari("sb3", **WHOLE_GAMES)):
                for measure in (stepping, collecting):
                    row = measure(family, args.game, n_envs, args.steps, args.rounds)
                    rows.append({"observation": family.constants.observation, **row})
                    print(rows[-1], flush=True)
        if "learning" in args.parts:
            rows.append(learning(args.game, n_envs, max(1, args.steps // UNROLL), args.rounds))
            print(rows[-1], flush=True)
    if "leap" in args.parts:
        rows.append(watching(args.game, args.path))
        print(rows[-1], flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps({"rows": rows, **circumstances()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
