"""Does the export pay? Plain SB3 PPO from an exported initialisation against PPO from scratch, on held-out tasks.

    python -m benchmarks.export_pays MODEL.safetensors -n 40000 -o benchmarks/results/export_pays_pointmass.json

Both sides learn the same tasks with the same streams and are compared in pairs. From scratch PPO runs twice: with the
export's own settings (plain gradient steps at the inner rate) and with SB3's default Adam; the better of the two at the
end is what the export has to beat.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import metarl
from benchmarks.measure import circumstances
from metarl.checkpoint import write_text_atomic
from metarl.meta.export import export_sb3
from metarl.meta.finetune import compare_curves, finetune_sb3
from metarl.zoo.console import console


def main() -> None:
    """Run the experiment, print the tables, write the record and a figure beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file saved by metarl")
    parser.add_argument("-n", "--n-timesteps", type=int, default=40_000, help="env steps a task and method")
    parser.add_argument("--n-tasks", type=int, default=20, help="test tasks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the streams")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON record")
    args = parser.parse_args()

    model = metarl.load(args.model)
    n_envs = model.arguments().get("n_episodes", 20)
    tasks = model.family.tasks("test", args.n_tasks)
    own = export_sb3(model, "ppo", optimizer="sgd", n_envs=n_envs)
    n_steps = model.family.horizon
    adam = export_sb3(model, "ppo", optimizer="adam", n_envs=n_envs, n_steps=n_steps, batch_size=n_steps * n_envs // 4)
    sides = {
        f"export of {model.name}": own.on,
        "export, Adam": adam.on,
        "scratch": own.scratch,
        "scratch, Adam": adam.scratch,
    }
    curves = {}
    for label, make in sides.items():
        curves[label] = finetune_sb3(make, model.family, tasks, args.n_timesteps, n_envs, args.seed, label)
        console().print(
            f"{label}: {curves[label].returns[:, 0].mean():.2f} → {curves[label].returns[:, -1].mean():.2f}"
        )
    exports, scratch = list(curves.values())[:2], list(curves.values())[2:]
    best = max(scratch, key=lambda curve: float(curve.returns[:, -1].mean()))
    comparisons = [compare_curves(export, best) for export in exports]
    for comparison in comparisons:
        console().print(comparison.table())
    record = {
        "command": f"python -m benchmarks.export_pays {args.model} -n {args.n_timesteps} --seed {args.seed}",
        **circumstances(),
        "model": {"algorithm": model.name, "env": model.family.id, "num_timesteps": model.num_timesteps},
        "tables": [str(comparison.table()) for comparison in comparisons],
        "curves": [curve.to_dict() for curve in curves.values()],
    }
    write_text_atomic(args.output, json.dumps(record, allow_nan=False, indent=1) + "\n")
    comparisons[0].figure().savefig(args.output.with_suffix(".png"), dpi=120)
    console().print(f"Saved {args.output} and {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
