"""The parser: every flag of every command. It imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from metarl import synonyms
from metarl.errors import ConfigError, unknown_name
from metarl.version import __version__
from metarl.zoo import values
from metarl.zoo.config import DEFAULT_ALGO, DEFAULT_ENV, parse_pairs
from metarl.zoo.experiments import names
from metarl.zoo.parser import Parser, refuse_unknown, require_text, typed

COMMANDS = ("train", "evaluate", "export", "finetune", "record", "plot", "reproduce", "list")
"""The commands; each is the name of the module of :mod:`metarl.zoo.commands` whose ``run(args)`` does it."""

_EXAMPLES = """\
examples:
  metarl train --algo fomaml --env PointMass-v0 -n 3_000_000
  metarl train --algo reptile --env PointMass-v0 -params learner:sb3_ppo    a stock learner, see `metarl list learners`
  metarl train -i logs/fomaml/PointMass-v0_1                     go on exactly where a run stopped
  metarl evaluate --algo fomaml --env PointMass-v0               40 held-out tasks, 0 to 3 inner steps
  metarl export --algo fomaml --env PointMass-v0 --to ppo -o plain_sb3.zip
  metarl finetune --algo fomaml --env PointMass-v0               plain PPO from the export and from scratch
  metarl record --algo fomaml --env PointMass-v0                 a GIF of the policy that a held-out task adapted
"""


def parse(argv: list[str]) -> argparse.Namespace | None:
    """Return the parsed arguments, None if a help or version text was printed instead.

    The name of the command is in ``command``, what was typed in ``argv``; ``given`` holds the names of the arguments
    that were typed, as opposed to defaults. ``k:v`` arguments are dicts already.

    :raises MetaRLError: an unknown command or flag (with the nearest name), or a value that does not parse.
    """
    for word in argv:
        require_text(word)
    parser, commands = build_parser()
    if not argv:
        parser.print_help()
        return None
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise unknown_name("command", argv[0], COMMANDS, synonyms.COMMANDS)
    if argv[0].startswith("-") and argv[0] not in parser.flags():
        raise ConfigError(f"no command given: known: {', '.join(COMMANDS)}")
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit:
        return None
    if unknown:
        refuse_unknown(unknown[0], args.command, commands[args.command])
    args.argv = argv
    args.given = typed(commands[args.command], argv[1:])
    _parse_pairs(args)
    return args


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and the parser of each command."""
    parser = Parser(
        prog="metarl",
        description="Meta-reinforcement learning on Stable-Baselines3: learn a starting point from which a new task is "
        "learnt in a few gradient steps.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"metarl {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}", parser_class=Parser)
    commands = {
        "train": _train(sub.add_parser("train", help="meta-train, or go on with a run", description="Meta-train.")),
        "evaluate": _evaluate(sub.add_parser("evaluate", help="adapt to held-out tasks and show the returns")),
        "export": _export(sub.add_parser("export", help="write a plain Stable-Baselines3 zip")),
        "finetune": _finetune(
            sub.add_parser("finetune", help="learn held-out tasks with plain SB3, from the export and from scratch")
        ),
        "record": _record(sub.add_parser("record", help="draw what adapted policies do, as a moving picture")),
        "plot": _plot(sub.add_parser("plot", help="draw training and adaptation curves of runs")),
        "reproduce": _reproduce(
            sub.add_parser("reproduce", help="a paper's experiments: train what is missing, compare what is finished")
        ),
        "list": _list(sub.add_parser("list", help="show algorithms, learners, environments and runs")),
    }
    return parser, commands


def _train(parser: Parser) -> Parser:
    what = parser.add_argument_group("what")
    _algo_and_env(what)
    what.add_argument(
        "-n",
        "--n-timesteps",
        type=values.count,
        default=None,
        metavar="N",
        help="env steps in total, of supervised families examples, support and query together (default: the YAML's)",
    )
    what.add_argument(
        "-i",
        "--trained-agent",
        type=values.path,
        default=None,
        metavar="RUN_OR_FILE",
        help="a run folder: go on exactly where it stopped; a .safetensors file: start a new run from it",
    )
    what.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action="extend",
        default=[],
        metavar="k:v",
        help="hyperparameters that overrule the YAML, for instance inner_lr:0.1 policy_kwargs.net_arch:[64,64] "
        "learner:ppo; n_training_tasks:20 of multi_task, progressive and hat: the first tasks that the family lists, "
        "or so many draws by --seed",
    )
    what.add_argument(
        "-conf", "--conf-file", type=values.path, default=None, metavar="FILE", help="another hyperparameter YAML"
    )
    _pairs(
        what,
        "--task",
        "what differs by task in an environment of Gymnasium: a range gravity:5..15 or values length:0.3,0.5,1.0, each "
        "an argument of its constructor or an attribute",
    )
    _pairs(what, "--env-kwargs", "arguments of the family")
    _pairs(what, "--eval-env-kwargs", "arguments of the family for evaluations (default: those of --env-kwargs)")
    what.add_argument(
        "--seed", type=values.seed_or_draw, default=-1, help="seed of the run; negative: drawn, and recorded (default)"
    )
    what.add_argument("--device", default="auto", help="auto or cpu: the batches of meta-RL are small")
    threads = "threads for physics and gradients (default: all)"
    what.add_argument("--num-threads", type=values.threads, default=None, help=threads)
    workers = "processes that learn tasks side by side, around stock learners and on games (default: 1, none besides)"
    what.add_argument("--num-workers", type=values.workers, default=1, help=workers)
    logs = parser.add_argument_group("logs")
    logs.add_argument(
        "-f", "--log-folder", type=values.folder, default="logs", help="run folders are LOG_FOLDER/<algo>/<env>_<k>"
    )
    logs.add_argument(
        "-tb",
        "--tensorboard-log",
        type=values.folder,
        default=None,
        help="TensorBoard folder (default: inside the run folder)",
    )
    logs.add_argument("--log-interval", type=values.count, default=1, help="meta-iterations between two log entries")
    logs.add_argument(
        "--verbose",
        type=int,
        default=1,
        choices=(0, 1, 2),
        help="0: nothing, 1: progress (default), 2: the logger's tables as well",
    )
    logs.add_argument(
        "-P",
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress bar (default: on a terminal)",
    )
    logs.add_argument("-uuid", "--uuid", action="store_true", help="add a unique name to the run folder's")
    saves = parser.add_argument_group("evaluations and checkpoints")
    saves.add_argument(
        "--eval-freq",
        type=values.interval,
        default=None,
        metavar="N",
        help="env steps (examples) between evaluations on validation tasks (default: a tenth of -n, and at least 10 "
        "meta-iterations; -1: never)",
    )
    saves.add_argument(
        "--eval-episodes", type=values.count, default=None, help="episodes a task (default: as in training)"
    )
    saves.add_argument("--n-eval-tasks", type=values.tasks, default=40, help="tasks in an evaluation")
    saves.add_argument(
        "--save-freq",
        type=values.interval,
        default=-1,
        metavar="N",
        help="env steps (examples) between checkpoints (default: after a meta-iteration, at most one a second)",
    )
    return parser


def _evaluate(parser: Parser) -> Parser:
    _which_run(parser, "run folders or .safetensors files, instead of --algo and --env", several=True)
    parser.add_argument("--split", default="test", help="validation, test, shifted or train tasks")
    parser.add_argument("--n-eval-tasks", type=values.tasks, default=40, help="tasks")
    parser.add_argument("--n-inner-steps", type=values.inner_steps, default=3, help="inner steps to adapt for")
    parser.add_argument(
        "--episodes",
        type=values.count,
        default=None,
        help="episodes for each inner step and task (default: as in training)",
    )
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--inner-lr-rule",
        default="constant",
        metavar="RULE",
        help="constant, half_after_first (the reference's test rule: full rate on the first step and half after) or "
        "hundredth_after_first (its rule for AntDir)",
    )
    rates.add_argument(
        "--inner-lr",
        nargs="+",
        type=float,
        default=None,
        metavar="RATE",
        help="the rate of each inner step, the last one for those left: 0.1 0.001 is the reference's on AntDir",
    )
    _tune(parser, "adapted to")
    text = "held-out families of tasks instead, before and after few tasks of each: 5 meta_lr:0.01 n_goal_tasks:10"
    parser.add_argument("--few-tasks", nargs="+", default=[], metavar=("N", "k:v"), help=text)
    parser.add_argument(
        "--merge", action="store_true", help="join runs of one algorithm: intervals by task and by training seed"
    )
    parser.add_argument("--seed", type=values.seed, default=0, help="seed of the evaluation's streams (default: 0)")
    parser.add_argument("--num-threads", type=values.threads, default=None, help="threads (default: all)")
    _record_and_figure(parser)
    return parser


def _export(parser: Parser) -> Parser:
    _which_run(parser, "a run folder or a .safetensors file, instead of --algo and --env")
    parser.add_argument(
        "--to",
        default=None,
        help="ppo, a2c or trpo (default: what the initialisation was learnt for, else ppo); expert: what families of "
        "imitation take, of an oracle's run or with --env of a zip of SB3's",
    )
    parser.add_argument(
        "--optimizer",
        default=None,
        help="sgd: an update is an inner step (default but for trpo); adam: fine-tuning with SB3's settings",
    )
    parser.add_argument(
        "-o", "--output", type=values.path, default=None, metavar="FILE.zip", help="default: <run>/export/<env>.zip"
    )
    _adapted_first(parser, "the export starts at what adaptation to --task comes to")
    parser.add_argument("--num-threads", type=values.threads, default=None, help="threads for physics (default: all)")
    _pairs(parser, "--task", "the task that the zip's environment is set to (default: a draw)")
    _overwrite(parser)
    return parser


def _finetune(parser: Parser) -> Parser:
    _which_run(parser, "a run folder or a .safetensors file, instead of --algo and --env")
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="from scratch only; without -i no run is needed: the network is that of the algorithm's YAML",
    )
    text = "ppo, a2c or trpo; ppo_lstm for a policy with a memory (default: what it was learnt for, else ppo)"
    parser.add_argument("--to", default=None, help=text)
    _adapted_first(parser, "exports start at what adaptation to each task comes to, before the curves begin")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        default=None,
        metavar="NAME",
        help="sgd: an update is an inner step; adam: SB3's settings (default: both; adam from scratch only, and for "
        "trpo); own: that of the stock algorithm which learnt. Exports are compared with the optimiser that is better "
        "from scratch",
    )
    parser.add_argument(
        "-n", "--n-timesteps", type=values.count, default=20_000, metavar="N", help="env steps for each task and method"
    )
    _tune(parser, "learnt from the export")
    parser.add_argument("--split", default="test", help="validation, test, shifted or train tasks")
    parser.add_argument("--n-eval-tasks", type=values.tasks, default=20, help="tasks")
    parser.add_argument("--seed", type=values.seed, default=0, help="seed of the tasks' streams (default: 0)")
    parser.add_argument("--num-threads", type=values.threads, default=None, help="threads for physics (default: all)")
    _record_and_figure(parser)
    return parser


def _record(parser: Parser) -> Parser:
    _which_run(parser, "a run folder or a .safetensors file, instead of --algo and --env")
    parser.add_argument(
        "-n",
        "--n-timesteps",
        "--n-steps",
        type=values.count,
        default=None,
        metavar="N",
        help="env steps in each task (default: those of one episode, and at least 20)",
    )
    parser.add_argument("--split", default="test", help="validation, test, shifted or train tasks")
    parser.add_argument(
        "--n-eval-tasks", type=values.tasks, default=1, help="tasks of the split, those that differ most"
    )
    _pairs(parser, "--task", "the task, instead of those of a split")
    parser.add_argument("--n-inner-steps", type=values.inner_steps, default=1, help="inner steps to adapt for before")
    parser.add_argument(
        "--episodes", type=values.count, default=None, help="episodes of each inner step (default: as in training)"
    )
    acts = parser.add_mutually_exclusive_group()
    acts.add_argument("--deterministic", action="store_true", help="act by the mode (default)")
    acts.add_argument("--stochastic", action="store_true", help="draw actions, as in training and evaluations")
    parser.add_argument("--seed", type=values.seed, default=0, help="seed of adaptation and episodes (default: 0)")
    parser.add_argument("--num-threads", type=values.threads, default=None, help="threads (default: all)")
    parser.add_argument(
        "-o",
        "--output",
        type=values.path,
        default=None,
        metavar="FILE.gif",
        help="default: <run>/videos/<split>_<number>.gif",
    )
    _overwrite(parser)
    return parser


def _plot(parser: Parser) -> Parser:
    _which_run(parser, "run folders, instead of --algo and --env", several=True, saved=False)
    parser.add_argument("--kind", default="training", choices=("training", "adaptation"), help="which curves")
    parser.add_argument("-x", default="steps", choices=("steps", "iterations", "time"), help="horizontal axis")
    parser.add_argument(
        "-y",
        nargs="+",
        default=["meta/pre_adapt_rew", "meta/post_adapt_rew"],
        metavar="KEY",
        help="columns of progress.csv (default: meta/pre_adapt_rew meta/post_adapt_rew)",
    )
    parser.add_argument("-w", "--window", type=values.count, default=1, help="meta-iterations in the running mean")
    parser.add_argument(
        "-o", "--output", type=values.path, default=None, metavar="FILE", help="png or svg (default: in the run)"
    )
    _overwrite(parser)
    return parser


def _reproduce(parser: Parser) -> Parser:
    parser.add_argument("experiment", help=f"whose runs are compared: {', '.join(names())}")
    parser.add_argument(
        "--scale",
        default="laptop",
        help="how large: smoke (a look at everything), laptop (a night on 2 cores; default) or paper (weeks)",
    )
    parser.add_argument("--only-env", nargs="+", default=[], metavar="ENV", help="train only on these environments")
    parser.add_argument("--only-algo", nargs="+", default=[], metavar="ALGO", help="train only these algorithms")
    parser.add_argument(
        "--only-part",
        nargs="+",
        default=[],
        metavar="PART",
        help="train only one part of the experiment: comparison (each algorithm at one setting) or ablation (those "
        "that are repeated over a grid of hyperparameters)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=values.seed, default=[], metavar="N", help="training seeds (the scale's)"
    )
    parser.add_argument(
        "--train",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train what is missing (default); --no-train: only compare what is finished",
    )
    parser.add_argument(
        "-f",
        "--folder",
        "--log-folder",
        type=values.folder,
        dest="log_folder",
        default=None,
        help="where the runs are, finished and half-finished ones too (default: logs/<experiment>/<scale>)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=values.folder,
        default=None,
        metavar="FOLDER",
        help="tables, figures, record (default: results, in -f); runs of a record that is there count, folders or not",
    )
    _overwrite(parser)
    parser.add_argument("--num-threads", type=values.threads, default=None, help="threads (default: all)")
    _packages(parser)
    return parser


def _list(parser: Parser) -> Parser:
    parser.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=("all", "algos", "learners", "outer", "envs", "runs"),
        help="default: all",
    )
    _packages(parser)
    _where_runs_are(parser, "-f", "--log-folder")
    return parser


def _algo_and_env(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--algo",
        type=values.name,
        default=None,
        help=f"a meta-algorithm, see `metarl list algos` (default: {DEFAULT_ALGO})",
    )
    parser.add_argument(
        "--env", type=values.name, default=None, help=f"a family's id, see `metarl list envs` (default: {DEFAULT_ENV})"
    )
    _packages(parser)


def _packages(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--gym-packages",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE",
        help="modules to import first, named without .py: those that register families, learners, wrappers or outer "
        "optimisers of your own; looked for in PYTHONPATH and, by python -m metarl.zoo, in the working folder",
    )


def _where_runs_are(parser: argparse._ActionsContainer, *flags: str) -> None:
    # No text, so that it is not looked for unless it is typed: `logs` may not be there yet.
    default = Path("logs")
    parser.add_argument(
        *flags, type=values.existing_folder, dest="log_folder", default=default, help="where the runs are"
    )


def _which_run(parser: argparse._ActionsContainer, named: str, several: bool = False, saved: bool = True) -> None:
    _algo_and_env(parser)
    _where_runs_are(parser, "-f", "--folder", "--log-folder")
    parser.add_argument("--exp-id", type=values.integer, default=0, help="number of the run (default: 0, the latest)")
    parser.add_argument(
        "-i",
        "--trained-agent",
        type=values.path,
        nargs="+" if several else 1,
        default=[],
        metavar="RUN_OR_FILE",
        help=named,
    )
    if saved:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--load-best", action="store_true", help="the best of the run's evaluations")
        group.add_argument(
            "--load-checkpoint", "--load-last-checkpoint", action="store_true", help="the run's last checkpoint"
        )
        _pairs(parser, "--env-kwargs", "arguments of the family that overrule the run's")


def _record_and_figure(parser: Parser) -> None:
    parser.add_argument(
        "-o", "--output", type=values.path, default=None, metavar="FILE.json", help="the record (default: in the run)"
    )
    parser.add_argument(
        "--figure", type=values.path, default=None, metavar="FILE", help="the figure, png or svg (default: beside it)"
    )
    _overwrite(parser)


def _tune(parser: Parser, done: str) -> None:
    text = f"tasks are also {done} so, a row each time: freeze:body unfreeze_every:2 layer_decay:0.5 new_head:true"
    parser.add_argument("--tune", nargs="+", action="append", default=[], metavar="k:v", help=text)


def _adapted_first(parser: Parser, where: str) -> None:
    parser.add_argument(
        "--n-inner-steps",
        type=values.inner_steps,
        default=0,
        help=f"{where}: inner steps, or how often examples are seen (default: 0, the initialisation)",
    )
    parser.add_argument(
        "--episodes",
        type=values.count,
        default=None,
        help="episodes, or examples, of each inner step (default: as in training)",
    )


def _overwrite(parser: Parser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="overwrite files that exist")


def _pairs(parser: argparse._ActionsContainer, flag: str, text: str) -> None:
    parser.add_argument(flag, nargs="+", action="extend", default=[], metavar="k:v", help=text)


def _parse_pairs(args: argparse.Namespace) -> None:
    for name in ("hyperparams", "env_kwargs", "eval_env_kwargs", "task"):
        if hasattr(args, name):
            setattr(args, name, parse_pairs(getattr(args, name), "--" + name.replace("_", "-")))
