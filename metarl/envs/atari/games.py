"""The games that tasks are: their names, how many actions each has, and the lists that splits are made of.

ALE is asked for none of this, so that naming a family loads no emulator; a test compares the table with ALE's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from metarl.errors import ConfigError, shorten, unknown_name

# Tasks are places in this table, also in files: what ALE adds comes last. ALE has four more, for two players only.
_ACTIONS = {
    "adventure": 18,
    "air_raid": 6,
    "alien": 18,
    "amidar": 10,
    "assault": 7,
    "asterix": 9,
    "asteroids": 14,
    "atlantis": 4,
    "atlantis2": 4,
    "backgammon": 3,
    "bank_heist": 18,
    "basic_math": 6,
    "battle_zone": 18,
    "beam_rider": 9,
    "berzerk": 18,
    "blackjack": 4,
    "bowling": 6,
    "boxing": 18,
    "breakout": 4,
    "carnival": 6,
    "casino": 4,
    "centipede": 18,
    "chopper_command": 18,
    "crazy_climber": 9,
    "crossbow": 18,
    "darkchambers": 18,
    "defender": 18,
    "demon_attack": 6,
    "donkey_kong": 18,
    "double_dunk": 18,
    "earthworld": 18,
    "elevator_action": 18,
    "enduro": 9,
    "entombed": 18,
    "et": 18,
    "fishing_derby": 18,
    "flag_capture": 18,
    "freeway": 3,
    "frogger": 5,
    "frostbite": 18,
    "galaxian": 6,
    "gopher": 8,
    "gravitar": 18,
    "hangman": 18,
    "haunted_house": 18,
    "hero": 18,
    "human_cannonball": 18,
    "ice_hockey": 18,
    "jamesbond": 18,
    "journey_escape": 16,
    "kaboom": 4,
    "kangaroo": 18,
    "keystone_kapers": 14,
    "king_kong": 6,
    "klax": 18,
    "koolaid": 9,
    "krull": 18,
    "kung_fu_master": 14,
    "laser_gates": 18,
    "lost_luggage": 9,
    "mario_bros": 18,
    "miniature_golf": 18,
    "montezuma_revenge": 18,
    "mr_do": 10,
    "ms_pacman": 9,
    "name_this_game": 6,
    "othello": 10,
    "pacman": 5,
    "phoenix": 8,
    "pitfall": 18,
    "pitfall2": 18,
    "pong": 6,
    "pooyan": 6,
    "private_eye": 18,
    "qbert": 6,
    "riverraid": 18,
    "road_runner": 18,
    "robotank": 18,
    "seaquest": 18,
    "sir_lancelot": 6,
    "skiing": 3,
    "solaris": 18,
    "space_invaders": 6,
    "space_war": 18,
    "star_gunner": 18,
    "superman": 18,
    "surround": 5,
    "tennis": 18,
    "tetris": 5,
    "tic_tac_toe_3d": 10,
    "time_pilot": 10,
    "trondead": 18,
    "turmoil": 12,
    "tutankham": 8,
    "up_n_down": 6,
    "venture": 18,
    "video_checkers": 5,
    "video_chess": 10,
    "video_cube": 18,
    "video_pinball": 9,
    "wizard_of_wor": 10,
    "word_zapper": 18,
    "yars_revenge": 18,
    "zaxxon": 18,
}
FULL = 18
"""Actions of the full set, the same for all games."""

ROMS = tuple(_ACTIONS)
"""ALE's names, by index."""
N_ACTIONS = tuple(_ACTIONS.values())
"""Sizes of the minimal action sets, by index."""


def _as_gymnasium(rom: str) -> str:
    return rom.title().replace("_", "")


GAMES = tuple(map(_as_gymnasium, ROMS))
"""Gymnasium's names, by index: ``"Breakout"`` of ``"ALE/Breakout-v5"``."""

_INDEX = {word: index for names in (GAMES, ROMS) for index, word in enumerate(names)}

TABLE6 = (
    "AirRaid",
    "UpNDown",
    "WizardOfWor",
    "Breakout",
    "SpaceInvaders",
    "Asteroids",
    "Alien",
    "Gravitar",
    "RoadRunner",
)
"""The games of Leap's table 6, in its order; the first three are trained on as well."""
TRAINING = (
    "AirRaid",
    "Amidar",
    "Assault",
    "Asterix",
    "Atlantis",
    "BeamRider",
    "Bowling",
    "Carnival",
    "CrazyClimber",
    "DemonAttack",
    "Enduro",
    "Freeway",
    "Gopher",
    "MsPacman",
    "NameThisGame",
    "Phoenix",
    "Pong",
    "Pooyan",
    "Qbert",
    "Skiing",
    "TimePilot",
    "Tutankham",
    "UpNDown",
    "VideoPinball",
    "WizardOfWor",
)
"""Those of Gym's 62 classic games that have at most 10 actions, which are 27, less Breakout and SpaceInvaders."""
VALIDATION = ("Frogger", "Galaxian", "Kaboom", "KingKong", "Koolaid", "MrDo", "Pacman", "SirLancelot")
"""Arcade games of at most 10 actions that ALE got after the classic 62, so that validation takes no game away."""
TEST = tuple(game for game in TABLE6 if game not in TRAINING)
"""What of table 6 is not trained on, the two games of few actions first."""


def game_index(game: Any) -> int:
    """Return the index of a game.

    :param game: its name as Gymnasium or as ALE writes it, also ``"ALE/Breakout-v5"``.
    :raises UnknownNameError: no such game; the message has the nearest name.
    """
    word = str(game)
    short = word.removeprefix("ALE/").removesuffix("-v5")
    if short not in _INDEX:
        raise unknown_name("game", word, GAMES)
    return _INDEX[short]


def game_indices(name: str, games: str | Sequence[str]) -> tuple[int, ...]:
    """Return the indices of an argument that lists games.

    :param name: the argument's.
    :param games: names, or one text with commas between them.
    :raises ConfigError: no list of different games.
    """
    words = games.split(",") if isinstance(games, str) else games
    if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{name}={shorten(games)}: names of games, such as Pong,Breakout")
    found = tuple(game_index(word.strip()) for word in words)
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{name}={shorten(games)}: at least one game, each of them once")
    return found
