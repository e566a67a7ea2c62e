"""The fuzz target for command lines: whatever is typed is parsed, or refused in one printable line."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metarl import FOMAML, synonyms
from metarl.errors import LONGEST, MetaRLError
from metarl.zoo import cli
from metarl.zoo.config import check_hyperparameters, load_hyperparameters, merge, merge_env_kwargs

FLAGS = {name: sorted(parser.flags()) for name, parser in cli.build_parser()[1].items()}
BAD = [
    *("", " ", "-", "--", "=", "-1", "1e400", "nan", "99999999999999999999", "9" * 5000, "١٢", "²", "a\nb", "a\0b"),
    *("\udcf6", "~", "~nobody/x", "/dev/zero", "x" * 5000, "null", "dict(a=1)", "%s", "{0}", "\x1b[31m", "-h", "#"),
]
NAMES = [
    *("inner_lr", "n_inner_steps", "meta_batch_size", "learner", "outer_kwargs.max_kl", "policy_kwargs", "env_kwargs"),
    *("env_kwargs.horizon", "n_timesteps", "learning_rate", "clip_range", "a.b.c", ".", "a.", "__class__", "seed"),
]
VALUES = [
    *("1", "0", "-1", "1e30", ".nan", "null", "true", "[1, 2]", "{a: 1}", "vpg", "0b_", "0x_", "2001-13-45", "!!int x"),
    *("[" * 1000, "0x" + "f" * 5000, "*a", "&a [*a]", "'", "? a", "---", "!!python/name:os.system", "!!set {a}", "|"),
]
pair = st.builds("{}{}{}".format, st.sampled_from(NAMES), st.sampled_from(":::= "), st.sampled_from(VALUES) | st.text())
word = st.sampled_from(BAD) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str) | pair
flag = st.sampled_from([f"--{name}" for name in synonyms.FLAGS])


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command, flags of its own and of others, pairs, and words that do not belong there."""
    command = draw(st.sampled_from(sorted(FLAGS)))
    argv = [command]
    for _ in range(draw(st.integers(0, 4))):
        own = st.sampled_from(FLAGS[command])
        argv += draw(st.one_of(st.tuples(own, word), st.tuples(own), st.tuples(flag, word), st.tuples(word)))
        if command == "train" and draw(st.booleans()):
            argv += [draw(st.sampled_from(["-params", "--env-kwargs", "--eval-env-kwargs"])), draw(pair)]
    return argv if draw(st.integers(0, 9)) else draw(st.permutations(argv))


def configure(argv: list[str]) -> None:
    """Do what every command does before it looks at a disk; of train, check the hyperparameters as well."""
    args = cli.parse(argv)
    if args is None or args.command != "train":
        return
    config: dict[str, Any] = merge(load_hyperparameters("fomaml", "PointMass-v0"), args.hyperparams)
    check_hyperparameters(merge_env_kwargs(config, args.env_kwargs), FOMAML)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(command_lines())
def test_command_lines(argv: list[str]) -> None:
    try:
        configure(argv)
    except MetaRLError as error:
        message = str(error)
        assert message
        assert message.isprintable()
        assert len(message) < LONGEST + 40
