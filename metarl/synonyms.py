"""Words of Stable-Baselines3, RL-Zoo3 and papers for what has another name here, or does not exist.

:func:`metarl.errors.unknown_name` answers an unknown name with them before it looks for one of nearly the same letters.
A word stands for names, of which those that exist in its place are proposed, or for a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

Words = Mapping[str, tuple[str, ...] | str]

_NO_SEARCH = "metarl searches for no hyperparameters: give them with -params k:v"
_NO_WANDB = "metarl knows no Weights & Biases: it writes TensorBoard's events and progress.csv"
_NO_BUFFER = "a stock algorithm starts over at every task, and its replay buffer is not kept"
_NO_WRAPPERS = "families are not wrapped: their arguments are in env_kwargs"
_NO_RENDERING = "only metarl record draws episodes, of policies that adapted; render_mode does in Python"
_NO_HUB = "metarl downloads and uploads nothing"
NO_NOISE = "SB3's action noise is an object, which no file of ours holds: give it to the model that to_sb3() returns"
_INTERVALS = "evaluate's report has 95% intervals and paired differences: metarl evaluate -i RUN RUN"
_STATIC = "figures have one size: write an svg and scale it"

COMMANDS: Words = {
    "enjoy": ("evaluate",),
    "eval": ("evaluate",),
    "test": ("evaluate",),
    "adapt": ("evaluate", "finetune"),
    "fine-tune": ("finetune",),
    "tune": ("finetune",),
    "record_video": ("record",),
    "record-video": ("record",),
    "video": ("record",),
    "render": ("record",),
    "plot_train": ("plot",),
    "plot_from_file": ("plot",),
    "all_plots": ("plot",),
    "benchmark": ("reproduce",),
    "resume": "to go on with a run: metarl train -i RUN",
    "continue": "to go on with a run: metarl train -i RUN",
    "help": "see metarl --help",
    "version": "see metarl --version",
    "record_training": _NO_RENDERING,
    "load_from_hub": _NO_HUB,
    "push_to_hub": _NO_HUB,
    "hyperparams_opt": _NO_SEARCH,
}
"""Commands of RL-Zoo3, and what others call ours."""

FLAGS: Words = {
    **dict.fromkeys(
        ("track", "wandb", "wandb-project-name", "wandb-entity", "wandb-group", "wandb-tags", "tags"), _NO_WANDB
    ),
    **dict.fromkeys(
        (
            *("optimize", "optimize-hyperparameters", "n-trials", "max-total-trials", "n-jobs", "sampler", "pruner"),
            *("n-startup-trials", "n-evaluations", "storage", "study-name", "trial-id", "optimization-log-path"),
            "no-optim-plots",
        ),
        _NO_SEARCH,
    ),
    **dict.fromkeys(("render", "no-render", "render-mode", "gif", "g", "video"), _NO_RENDERING),
    **dict.fromkeys(("figsize", "fontsize"), _STATIC),
    **dict.fromkeys(("rliable", "iqm", "versus", "ci-size", "latex", "boot"), _INTERVALS),
    **dict.fromkeys(("save-replay-buffer", "replay-buffer"), _NO_BUFFER),
    "vec-env": "all copies of a family step together in one process: there is nothing to choose",
    "n-envs": "episodes are collected side by side: -params n_episodes:N says how many a task has",
    "n-eval-envs": ("--n-eval-tasks",),
    "n-eval-episodes": ("--eval-episodes", "--episodes"),
    "eval-episodes": ("--episodes",),
    "episodes": ("--eval-episodes",),
    "n-timesteps": ("--n-eval-tasks", "--episodes"),
    "total-timesteps": ("--n-timesteps",),
    "timesteps": ("--n-timesteps",),
    "n-tasks": ("--n-eval-tasks",),
    "inner-steps": ("--n-inner-steps",),
    "truncate-last-trajectory": "metarl's runs keep every point: a run goes on where its last checkpoint is",
    "deterministic": "a learner needs actions that are drawn: predict(deterministic=True) is for exports, in Python",
    "stochastic": "actions are always drawn: a learner needs them so",
    "norm-reward": _NO_WRAPPERS,
    "custom-objects": "nothing of a saved file is run: there are no objects to replace",
    "reward-log": "every return is in the record: -o FILE.json",
    "load-last": ("--load-last-checkpoint",),
    "log-dir": ("--log-folder",),
    "logdir": ("--log-folder",),
    "exp-folder": ("--folder",),
    "output-folder": ("--output",),
    "tensorboard": ("--tensorboard-log",),
    "resume": ("--trained-agent",),
    "load": ("--trained-agent",),
    "model": ("--trained-agent",),
    "config": ("--conf-file",),
    "a": ("--algo",),
    "e": ("--env",),
    "k": ("-y",),
    "key": ("-y",),
    "l": "lines are named after their runs",
    "labels": "lines are named after their runs",
    "max": "a figure shows all of a run",
    "max-timesteps": "a figure shows all of a run",
    "min": "a figure shows all of a run",
    "cuda": "metarl runs on the CPU: its batches are small",
    "gpu": "metarl runs on the CPU: its batches are small",
    "device": "metarl runs on the CPU: its batches are small",
    "verbose": "this command always says what it does",
    "progress": "the bar shows on a terminal",
    "P": "the bar shows on a terminal",
    "force": ("--overwrite",),
    "from-hub": _NO_HUB,
}
"""Flags of RL-Zoo3 that some command of ours does not have, without their dashes."""

_LEARNING_RATES = ("inner_lr", "outer_kwargs.learning_rate", "learning_rate")

HYPERPARAMETERS: Words = {
    **dict.fromkeys(("learning_rate", "lr"), _LEARNING_RATES),
    **dict.fromkeys(("fast_lr", "adapt_lr", "inner_learning_rate", "alpha"), ("inner_lr",)),
    **dict.fromkeys(("meta_lr", "outer_lr", "meta_learning_rate"), ("outer_kwargs.learning_rate",)),
    **dict.fromkeys(("inner_steps", "num_inner_steps", "adapt_steps", "n_adapt_steps"), ("n_inner_steps",)),
    **dict.fromkeys(("n_tasks", "num_tasks", "meta_batch", "tasks_per_batch"), ("meta_batch_size",)),
    **{
        name: (f"learner_kwargs.{name}",)
        for name in (
            *("n_epochs", "clip_range", "clip_range_vf", "ent_coef", "vf_coef", "batch_size", "normalize", "n_envs"),
            *("buffer_size", "learning_starts", "tau", "train_freq", "gradient_steps", "optimizer"),
            *("target_update_interval", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
            *("policy_delay", "target_policy_noise", "target_noise_clip", "target_entropy", "n_critic_updates"),
            *("use_rms_prop", "rms_prop_eps", "top_quantiles_to_drop_per_net", "optimize_memory_usage"),
        )
    },
    "n_steps": ("n_episodes", "n_transitions", "learner_kwargs.n_steps"),
    "max_grad_norm": ("learner_kwargs.max_grad_norm", "outer_kwargs.max_grad_norm"),
    "target_kl": ("max_kl", "outer_kwargs.max_kl", "learner_kwargs.target_kl"),
    "delta": ("max_kl", "outer_kwargs.max_kl"),
    "cg_max_steps": ("cg_steps", "outer_kwargs.cg_steps"),
    "cg_damping": ("outer_kwargs.cg_damping",),
    "line_search_max_iter": ("line_search_steps", "outer_kwargs.line_search_steps"),
    "line_search_shrinking_factor": ("line_search_shrink", "outer_kwargs.line_search_shrink"),
    "sub_sampling_factor": ("fisher_fraction",),
    "betas": ("beta1", "beta2"),
    "total_timesteps": ("n_timesteps",),
    "net_arch": ("policy_kwargs.net_arch",),
    "activation_fn": ("policy_kwargs.activation_fn",),
    "log_std_init": ("policy_kwargs.log_std_init",),
    "ortho_init": ("policy_kwargs.ortho_init",),
    **{name: (f"learner_kwargs.{name}",) for name in ("use_sde", "sde_sample_freq", "use_sde_at_warmup")},
    **dict.fromkeys(("action_noise", "noise_type", "noise_std"), NO_NOISE),
    **dict.fromkeys(("env_wrapper", "vec_env_wrapper", "frame_stack", "monitor_kwargs"), _NO_WRAPPERS),
    **dict.fromkeys(
        ("replay_buffer_class", "replay_buffer_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs"), _NO_BUFFER
    ),
    "stats_window_size": "returns are logged of every meta-iteration, not of a window",
    "callback": "callbacks are given to learn(), in Python",
    "n_eval_episodes": "a flag says it: --eval-episodes",
    "eval_freq": "a flag says it: --eval-freq",
}
"""Arguments of SB3's algorithms and keys of RL-Zoo3's YAML."""

VIEWS: Words = {
    **dict.fromkeys(
        ("max_episode_steps", "max_steps", "max_path_length", "episode_length", "time_limit", "n_steps"), ("horizon",)
    ),
}
"""Arguments of Gymnasium's environments and of other code bases' families."""

FAMILIES: Words = {
    **VIEWS,
    **dict.fromkeys(
        ("goal", "velocity", "direction", "angle", "obstacles"),
        "it is of the task, which is drawn: gymnasium.make and FamilyVecEnv take the tasks that they are given",
    ),
    **dict.fromkeys(
        ("render_mode", "render"), "families have no mode: gymnasium.make and FamilyVecEnv take render_mode"
    ),
}
"""What belongs to a view of a family and is given to the family."""

LEARNERS: Words = {
    **{name: (f"sb3_{name}",) for name in ("trpo", "sac", "td3", "ddpg", "dqn", "tqc", "qrdqn", "crossq")},
    **{name: (f"sb3_{name}", name) for name in ("ppo", "a2c")},
    **dict.fromkeys(
        ("ppo_lstm", "recurrent_ppo", "recurrentppo", "sb3_recurrent_ppo", "sb3_recurrentppo"),
        "recurrent policies carry a hidden state, which is not part of an initialisation; algorithm rl2 has one",
    ),
    **dict.fromkeys(
        ("ppo_mask", "maskable_ppo", "maskableppo", "sb3_maskable_ppo", "sb3_maskableppo"),
        "families have no action masks: use 'sb3_ppo'",
    ),
    **dict.fromkeys(("her", "sb3_her"), "observations of families hold no goals that hindsight could replace"),
    "ars": "it searches at random, without gradients or optimisers: there is no path to watch",
    "reinforce": ("vpg",),
}
"""Algorithms of SB3, sb3-contrib and RL-Zoo3, and names of their classes in lower case."""

ALGORITHMS: Words = {
    **{
        name: f"it is a learner, not a meta-algorithm: -params learner:{name}, or learner:sb3_{name} for SB3's own"
        for name in ("ppo", "a2c")
    },
    **{
        name: f"it is a learner, not a meta-algorithm: -params learner:sb3_{name}"
        for name in ("trpo", "sac", "td3", "ddpg", "dqn", "tqc", "qrdqn", "crossq")
    },
    "vpg": "it is a learner, not a meta-algorithm: -params learner:vpg",
    "reinforce": "it is a learner, not a meta-algorithm: -params learner:vpg",
    **dict.fromkeys(("ppo_lstm", "recurrent_ppo", "recurrentppo", "rl-2", "rl^2", "rl²"), ("rl2",)),
    "scratch": ("random",),
    "fo-maml": ("fomaml",),
    "joint": ("pretrain",),
    **dict.fromkeys(("multitask", "multi-task", "multi_head", "multihead", "multi-head"), ("multi_task",)),
}
"""What RL-Zoo3's ``--algo`` takes, and papers' names."""
