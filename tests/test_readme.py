"""The README's Python runs as it stands, at sizes that take seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALLER = {
    "meta_batch_size=40": "meta_batch_size=2",
    "n_episodes=20": "n_episodes=2",
    "total_timesteps=5_000_000": "total_timesteps=1",
    'split="test"': 'split="test", n_tasks=2',
    "ppo.learn(20_000)": "ppo.learn(1)",
    '"length": (0.3, 1.0)})': '"length": (0.3, 1.0)}, horizon=20)',
    "total_timesteps=500_000": "total_timesteps=1",
    "n_episodes=10": "n_episodes=2",
    "n_inner_steps=2": "n_inner_steps=2, n_tasks=2",
    "model.to_sb3(env=env)": "model.to_sb3(env=env, value_tasks=2)",
    "ppo.learn(10_000)": "ppo.learn(1)",
}
CHECKS = """
import gymnasium

check_family(make_family("Line-v0"))
gymnasium.make("Line-v0", target=0.3).reset()
"""
"""What the README says of the family that it makes."""


def test_every_size_that_is_made_smaller_is_there() -> None:
    assert len(BLOCKS) == 3
    for size in SMALLER:
        assert README.count(size) == 1, size


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_a_block_runs(index: int, tmp_path: Path) -> None:
    code = BLOCKS[index]
    for size, smaller in SMALLER.items():
        code = code.replace(size, smaller)
    if "class Line" in code:
        code += CHECKS
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    if index == 0:
        assert {"fomaml_antvel.safetensors", "plain_sb3.zip", "runs"} <= written
    if index < 2:
        assert "95% intervals" in done.stdout
