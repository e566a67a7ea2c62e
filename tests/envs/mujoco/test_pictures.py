"""Pictures of families: what they show, that nothing depends on them, and the line of help where there are none."""

import copy
import functools
import importlib.util
import itertools
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import AddRenderObservation, RecordVideo
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from metarl.envs.checker.family import FamilyCheckError, check_family
from metarl.envs.checker.pictures import check_pictures
from metarl.envs.family import Family
from metarl.envs.mujoco import pictures
from metarl.envs.mujoco.physics import MujocoFamily
from metarl.envs.mujoco.pictures import PictureError, draw_robot
from metarl.envs.registry import family_ids, make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError

FAMILIES = [id for id in family_ids() if make_family(id).horizon > 5 and not make_family(id).live]
FAMILIES += ["AntVel-v0+oracle", "PointMass-v0+oracle"]
BLUE, GREEN, GREY, LIGHT, EDGE = (31, 119, 180), (44, 160, 44), (150, 150, 150), (150, 190, 230), (205, 205, 205)


@functools.cache
def family_of(id: str) -> Family:
    return make_family(id.removesuffix("+oracle"), oracle=id.endswith("+oracle"))


def single(id: str, render_mode: str | None = "rgb_array") -> SingleEnv:
    family = family_of(id)
    return SingleEnv(family, render_mode=render_mode, **one_task(family.tasks("test", 1), 0))


def vector(id: str, n_envs: int = 2, render_mode: str | None = "rgb_array") -> FamilyVecEnv:
    family = family_of(id)
    return FamilyVecEnv(family, family.tasks("test", 1), n_envs, seed=3, render_mode=render_mode)


def require_help(error: PictureError) -> None:
    message = str(error)
    assert "\n" not in message
    for word in ("libegl1 libgl1-mesa-dri", "libosmesa6", "MUJOCO_GL=egl", "MUJOCO_GL=osmesa"):
        assert word in message


def drawn(id: str, draw: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Return a picture; None where robots cannot be drawn, after a look at the help."""
    try:
        return draw()
    except PictureError as error:
        require_help(error)
        assert "PointMass" not in id
        return None


@pytest.fixture
def _draws_robots() -> None:
    """Skip what robots can be drawn for on machines where they cannot: what those say is tested all the same."""
    if drawn("AntVel-v0", picture) is None:
        pytest.skip("neither EGL nor OSMesa")


BOX = """<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="9 9 1" rgba="1 1 1 1"/>
<body name="box" pos="0 0 1"><freejoint/><geom type="box" size=".5 .5 .5" rgba="{} 0 0 1"/></body>
</worldbody></mujoco>"""


@functools.cache
def box(red: float) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(BOX.format(red))


def picture(red: float = 1.0, x: float = 0.0) -> np.ndarray:
    return draw_robot("Box-v0", box(red), np.array([0.0, x, 0, 1, 1, *[0] * 9]), "box")


# ------------------------------------------------------------------------------------------------------------ families
@pytest.mark.parametrize("id", FAMILIES)
def test_every_family_is_drawn_in_every_view_and_nothing_depends_on_it(id):
    env, plain, vec, bare = single(id), single(id, None), vector(id), vector(id, render_mode=None)
    np.testing.assert_array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    np.testing.assert_array_equal(vec.reset(), bare.reset())
    first = drawn(id, env.render)
    space = env.action_space
    action = np.array(space.start + 2) if isinstance(space, Discrete) else np.linspace(-0.5, 1.0, *space.shape)
    for _ in range(5):
        for a, b in zip(env.step(action), plain.step(action), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(vec.step([action] * 2)[:3], bare.step([action] * 2)[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        if first is None:
            return
        last = env.render()
    assert first.shape[2] == 3
    assert min(first.shape[:2]) >= 100
    assert first.dtype == np.uint8
    assert first.std() > 5
    assert (first != last).any()
    np.testing.assert_array_equal(env.render(), last)
    images = vec.get_images()
    # The first copy has the single view's seed, the second another one, which shows only where starts are random.
    np.testing.assert_array_equal(images[0], last)
    assert ((images[1] != last).any()) == isinstance(family_of(id.removesuffix("+oracle")), MujocoFamily)
    assert vec.render().shape[2] == 3
    np.testing.assert_array_equal(vec.env_method("render")[1], images[1])


@pytest.mark.parametrize("id", [id for id in family_ids() if make_family(id).render_fps is not None])
def test_what_the_views_say_about_pictures(id):
    family = family_of(id)
    env, vec = gymnasium.make(id, render_mode="rgb_array"), vector(id)
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": family.render_fps}
    assert env.render_mode == vec.render_mode == "rgb_array"
    assert vec.metadata["render_fps"] == family.render_fps
    assert vec.get_attr("metadata") == [env.metadata] * 2
    if isinstance(family, MujocoFamily):
        assert family.render_fps == round(1 / family.dt)
    assert vector(id, render_mode=None).render_mode is None
    assert env.spec.kwargs["render_mode"] == "rgb_array"
    for view in (env, vec):
        with pytest.raises(ResetNeeded):
            view.render()


@pytest.mark.usefixtures("_draws_robots")
@pytest.mark.parametrize("id", ["AntVel-v0", "HalfCheetahVel-v0"])
def test_the_camera_follows_the_robot(id):
    family = family_of(id)
    tasks = family.tasks("test", 1)
    state, _ = family.reset(tasks, [np.random.default_rng(0)], 2)
    # The plane of the floor is 40 m to each side.
    state["physics"][0, 1, 1] += 16.0
    for copy_ in (0, 1):
        red, green, blue = family.render(tasks, [state], 0, copy_)[150:250, 150:250].reshape(-1, 3).T.astype(int)
        assert ((red > green + 25) & (green > blue + 15)).mean() > 0.03


def test_a_family_that_is_not_drawn_says_so():
    class Bare(type(family_of("PointMass-v0"))):
        id, render_fps = "Bare-v0", None

    family = Bare()
    for make in (lambda: SingleEnv(family, render_mode="rgb_array"), lambda: vec_of(family, "rgb_array")):
        with pytest.raises(ConfigError, match=r"^render_mode='rgb_array': Bare-v0 is not drawn$"):
            make()
    assert SingleEnv(family).metadata["render_modes"] == []
    with pytest.raises(ConfigError, match="Bare-v0 is not drawn"):
        Family.render(family, {}, [], 0, 0)


def vec_of(family: Family, render_mode: str) -> FamilyVecEnv:
    return FamilyVecEnv(family, family.tasks("test", 1), render_mode=render_mode)


@pytest.mark.parametrize("render_mode", ["human", "ansi", 3, ["rgb_array"]])
def test_other_kinds_of_pictures_are_refused(render_mode):
    family = family_of("PointMass-v0")
    for make in (lambda: SingleEnv(family, render_mode=render_mode), lambda: vec_of(family, render_mode)):
        with pytest.raises(ConfigError, match="PointMass-v0 takes 'rgb_array' or None"):
            make()


def test_without_a_render_mode_there_is_no_picture():
    env, vec = single("PointMass-v0", None), vector("PointMass-v0", render_mode=None)
    env.reset(), vec.reset()
    with pytest.warns(UserWarning, match=r"PointMass-v0: render\(\) without a render_mode"):
        assert env.render() is None
    with pytest.warns(UserWarning, match="render"):
        assert vec.render() is None
    assert vec.get_images() == [None, None]


# ----------------------------------------------------------------------------------------------------------- PointMass
def has(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return which pixels have a colour, edges left out."""
    return np.abs(frame.astype(int) - colour).max(-1) < 20


def where(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the middle of what has a colour, in the plane that reaches to 0.825."""
    y, x = np.nonzero(has(frame, colour))
    return (np.array([x.mean(), 399 - y.mean()]) + 0.5 - 200) / 200 * 0.825


def test_the_plane_shows_goal_start_position_and_way():
    env = SingleEnv("PointMass-v0", goal=[0.4, -0.3], render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    np.testing.assert_allclose(where(frame, GREEN), [0.4, -0.3], atol=0.005)
    np.testing.assert_allclose(where(frame, BLUE), [0.0, 0.0], atol=0.005)
    np.testing.assert_allclose(where(frame, EDGE), [0.0, 0.0], atol=0.005)
    assert not has(frame, LIGHT).any()
    for _ in range(4):
        env.step([0.0, 1.0])
    frame = env.render()
    np.testing.assert_allclose(where(frame, BLUE), [0.0, 0.4], atol=0.005)
    np.testing.assert_allclose(where(frame, GREY), [0.0, 0.0], atol=0.02)
    np.testing.assert_allclose(where(frame, LIGHT), [0.0, 0.2], atol=0.02)
    for _ in range(8):
        env.step([0.0, 1.0])
    frame = env.render()
    # 1.2 m up: the picture shows more of the plane.
    np.testing.assert_allclose(where(frame, BLUE) * 1.1 * 1.2 / 0.825, [0.0, 1.2], atol=0.01)


def test_a_render_mode_that_is_set_later_shows_the_state_as_it_is():
    env = SingleEnv("PointMass-v0", goal=[0.4, -0.3])
    env.reset(seed=0)
    for _ in range(3):
        env.step([0.0, 1.0])
    env.render_mode = "rgb_array"
    np.testing.assert_allclose(where(env.render(), BLUE), [0.0, 0.3], atol=0.005)


def test_a_new_episode_has_a_new_way():
    env = SingleEnv(make_family("PointMass-v0", horizon=3), goal=[0.4, -0.3], render_mode="rgb_array")
    vec = FamilyVecEnv(env.family, {"goal": [[0.4, -0.3], [0.0, 0.1]]}, render_mode="rgb_array")
    start = env.reset(seed=0) and env.render()
    vec.reset()
    up = np.array([[0.0, 1.0], [0.0, 0.97]])
    for t in range(5):
        vec.step(up)
        # The second copy reaches its goal at once, and starts over.
        np.testing.assert_array_equal(vec.get_images()[1], FamilyVecEnv.get_images(vec)[1])
        if t < 3:
            *_, truncated, _ = env.step(up[0])
            # The single view shows how the episode ended, the vector view how the next one begins, as SB3's do.
            expected = start if truncated else env.render()
            np.testing.assert_array_equal(vec.get_images()[0], expected)
            assert (env.render() != start).any()
    assert len(where(vec.get_images()[1], BLUE)) == 2


def test_momentum_walls_and_corners_are_drawn():
    for lineage in ("promp_momentum", "garage", "s4"):
        env = SingleEnv("PointMass-v0", lineage=lineage, render_mode="rgb_array")
        env.reset(seed=0)
        env.step([0.1, 0.1])
        frame = env.render()
        assert has(frame, BLUE).any()
        # Walls stand far outside the goals' square.
        for _ in range(99 if lineage == "garage" else 0):
            env.step([10.0, 0.0])
        assert has(env.render(), (0, 0, 0)).any() == (lineage == "garage")


# ------------------------------------------------------------------------------------------ Gymnasium's and SB3's tools
def test_checkers_pass_with_pictures():
    gymnasium_check_env(gymnasium.make("PointMass-v0", render_mode="rgb_array").unwrapped)
    check_env(gymnasium.make("PointMass-v0", render_mode="rgb_array").unwrapped, skip_render_check=False)


def test_gymnasium_collects_frames():
    env = gymnasium.make("PointMass-v0", horizon=4, render_mode="rgb_array_list")
    env.reset(seed=0)
    while not any(env.step(np.zeros(2))[2:4]):
        pass
    assert np.array(env.render()).shape == (5, 400, 400, 3)
    seen = AddRenderObservation(gymnasium.make("PointMass-v0", render_mode="rgb_array"))
    assert seen.reset(seed=0)[0].shape == (400, 400, 3)


class Clip:
    """Stands for moviepy's: keeps what would be written."""

    written: list[tuple[np.ndarray, float]] = []  # noqa: RUF012

    def __init__(self, frames, fps):
        self.clip = np.array(frames), fps

    def write_videofile(self, path, **kwargs):
        Clip.written.append(self.clip)


@pytest.fixture
def _moviepy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ImageSequenceClip=Clip))
    monkeypatch.setattr(Clip, "written", [])


@pytest.mark.usefixtures("_moviepy")
def test_gymnasium_s_recorder_gets_every_frame(tmp_path):
    env = RecordVideo(
        gymnasium.make("PointMass-v0", horizon=4, render_mode="rgb_array"), str(tmp_path / "v"), disable_logger=True
    )
    env.reset(seed=0)
    while not any(env.step(np.zeros(2))[2:4]):
        pass
    env.close()
    ((frames, fps),) = Clip.written
    assert frames.shape == (5, 400, 400, 3)
    assert fps == 20


@pytest.mark.usefixtures("_moviepy")
@pytest.mark.parametrize(
    "make", [lambda: vector("PointMass-v0"), lambda: DummyVecEnv([lambda: single("PointMass-v0")])]
)
def test_sb3_s_recorder_gets_every_frame(make, tmp_path):
    vec = VecVideoRecorder(make(), tmp_path, lambda step: step == 0, video_length=4)
    vec.reset()
    for _ in range(5):
        vec.step(np.zeros((vec.num_envs, 2)))
    vec.close()
    ((frames, fps),) = Clip.written
    # Both copies are in each frame.
    assert frames.shape[0] == 5
    assert frames[0].size == 400 * 400 * 3 * vec.num_envs
    assert fps == 20


def test_without_moviepy_the_recorders_say_what_is_missing(tmp_path):
    if importlib.util.find_spec("moviepy") is not None:
        pytest.skip("moviepy is there")
    with pytest.raises(DependencyNotInstalled, match=r"(?i)moviepy"):
        RecordVideo(gymnasium.make("PointMass-v0", render_mode="rgb_array"), str(tmp_path / "v"))
    with pytest.raises(DependencyNotInstalled, match=r"(?i)moviepy"):
        VecVideoRecorder(vector("PointMass-v0"), tmp_path, lambda step: True)


def test_sb3_s_make_vec_env_asks_for_pictures():
    vec = make_vec_env("PointMass-v0", n_envs=2, env_kwargs={"goal": [0.1, 0.2]})
    vec.reset()
    assert vec.render_mode == "rgb_array"
    assert vec.render().shape[2] == 3
    # A robot is drawn when somebody looks, not before: learning goes on without OpenGL.
    assert make_vec_env("AntVel-v0").reset().shape == (1, 125)


def drawing(change: Callable[..., np.ndarray]) -> Family:
    """Return a PointMass whose pictures are changed: ``change(frame, tasks, trail)``."""
    family = make_family("PointMass-v0", lineage="s4")
    original = family.render
    family.render = lambda tasks, trail, task, env: change(original(tasks, trail, task, env), tasks, trail)
    return family


def moves(frame, tasks, trail):
    trail[-1]["position"] += 0.01
    return frame


MISTAKES = {
    "render returns \\[400, 400\\] uint8, not": lambda frame, *_: frame[..., 0],
    "render returns \\[400, 400, 3\\] float64, not": lambda frame, *_: frame / 255,
    "render returns a NoneType, not": lambda *_: None,
    "render changes the tasks or the states": moves,
    "the same state is drawn differently": lambda frame, *_: frame + np.uint8(next(COUNTER)),
}
COUNTER = itertools.count()


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_in_pictures_are_found(message):
    with pytest.raises(FamilyCheckError, match=message):
        check_pictures(drawing(MISTAKES[message]), family_of("PointMass-v0").tasks("test", 2), 0)


@pytest.mark.parametrize("fps", [0, -1, True, "20", np.inf, np.nan])
def test_the_speed_of_pictures_is_above_zero(fps):
    family = drawing(lambda frame, *_: frame)
    check_pictures(family, family.tasks("test", 2), 0)
    family.render_fps = fps
    with pytest.raises(FamilyCheckError, match=r"render_fps=.*: above 0, or None"):
        check_family(family)


# ----------------------------------------------------------------------------------------------- the process that draws
def test_without_opengl_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "_painter", None)
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(
        PictureError, match=r"^no picture of Box-v0 \(MUJOCO_GL=off turns drawing off\): install"
    ) as caught:
        picture()
    require_help(caught.value)
    env, vec = single("AntVel-v0"), vector("AntVel-v0")
    env.reset(seed=0), vec.reset()
    for view in (env, vec):
        with pytest.raises(PictureError) as caught:
            view.render()
        require_help(caught.value)
    monkeypatch.delenv("MUJOCO_GL")
    script = tmp_path / "painter.py"
    script.write_text("import os\nraise ImportError('no library for ' + os.environ['MUJOCO_GL'])")
    monkeypatch.setattr(pictures, "SCRIPT", script)
    both = "egl: ImportError: no library for egl; osmesa: ImportError: no library for osmesa"
    with pytest.raises(PictureError) as caught:
        picture()
    assert (both in str(caught.value)) == (sys.platform == "linux")
    require_help(caught.value)
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    with pytest.raises(PictureError, match=r"\(egl: ImportError: no library for egl\): install"):
        picture()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, time; os.write(1, b'+'); time.sleep(60)", "no answer within 0.5 s"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
        ("import os; os.write(1, b'+'); os.read(0, 9); os.write(1, b'+half'); os._exit(3)", "it ended with code 3"),
        ("import os; os.write(1, b'+'); os.kill(os.getpid(), 11)", "it ended with code -11"),
        ("print('x' * 9999); raise SystemExit('a reason\\nof two lines')", "of two lines"),
    ],
)
def test_a_process_that_hangs_or_dies_is_one_line(code, message, monkeypatch, tmp_path):
    script = tmp_path / "painter.py"
    script.write_text(code)
    monkeypatch.setattr(pictures, "_painter", None)
    monkeypatch.setattr(pictures, "SCRIPT", script)
    monkeypatch.setattr(pictures, "TIMEOUT", 0.5)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(PictureError) as caught:
        picture()
    assert message in str(caught.value)
    require_help(caught.value)
    assert pictures._painter is None


def test_a_machine_that_starts_no_process_is_one_line(monkeypatch):
    monkeypatch.setattr(pictures, "_painter", None)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PictureError, match=r"\(egl: .*No such file or directory: '/nowhere/python'\)"):
        picture()


@pytest.mark.usefixtures("_draws_robots")
def test_it_starts_again_after_it_was_killed():
    first = picture()
    pictures._painter._process.kill()
    pictures._painter._process.wait()
    with pytest.raises(PictureError, match="code -9"):
        picture()
    np.testing.assert_array_equal(picture(), first)


@pytest.mark.usefixtures("_draws_robots")
def test_it_keeps_as_many_models_as_it_says(monkeypatch):
    monkeypatch.setattr(pictures, "_painter", None)
    reds = np.linspace(0.2, 1.0, 4)
    first = [picture(red) for red in reds]
    assert len(pictures._painter._known) == 4
    monkeypatch.setattr(pictures, "KEPT", 2)
    assert picture(0.1).any()
    for red, frame in zip(reds, first, strict=True):
        np.testing.assert_array_equal(picture(red), frame)
        assert len(pictures._painter._known) == 2
    assert len({frame.tobytes() for frame in first}) == len(reds)


@pytest.mark.usefixtures("_draws_robots")
def test_threads_get_their_own_pictures():
    expected = [picture(red) for red in (0.5, 1.0)]
    got: list[list[np.ndarray]] = [[], []]

    def draw(index: int) -> None:
        got[index] = [picture((0.5, 1.0)[index]) for _ in range(5)]

    threads = [threading.Thread(target=draw, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frames, frame in zip(got, expected, strict=True):
        assert len(frames) == 5
        for other in frames:
            np.testing.assert_array_equal(other, frame)


FORKS = """
import os, sys
import mujoco, numpy as np
from metarl.envs.mujoco.pictures import draw_robot
model = mujoco.MjModel.from_xml_string('''{}''')
def picture():
    return draw_robot("Box-v0", model, np.array([0.0, 0, 0, 1, 1, *[0] * 9]), "box")
before = picture()
child = os.fork()
if child == 0:
    assert np.array_equal(picture(), before)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert np.array_equal(picture(), before)
idle = os.fork()
if idle == 0:
    sys.exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(idle, 0)[1]) == 8
assert np.array_equal(picture(), before)
print("done")
"""


@pytest.mark.usefixtures("_draws_robots")
def test_a_process_that_has_drawn_can_fork():
    code = FORKS.format(BOX.format(1))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "done\n", done.stderr


def test_a_library_that_is_not_there_keeps_nobody_from_training():
    code = "import os; from metarl.envs.mujoco.bindings import mujoco; print(mujoco.MjData, os.environ['MUJOCO_GL'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "MUJOCO_GL": "nothing"},
    )
    assert done.stdout == "<class 'mujoco._structs.MjData'> nothing\n", done.stderr


@pytest.mark.parametrize("id", ["PointMass-v0", "HalfCheetahVel-v0"])
def test_copies_of_a_view_draw_the_same(id):
    env, vec = single(id), vector(id)
    env.reset(seed=0), vec.reset()
    action = np.ones(env.action_space.shape)
    for _ in range(3):
        env.step(action), vec.step([action] * 2)
    frame = drawn(id, env.render)
    if frame is None:
        return
    images = vec.get_images()
    for again in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(again.render(), frame)
    for again in (copy.deepcopy(vec), pickle.loads(pickle.dumps(vec))):
        np.testing.assert_array_equal(again.get_images(), images)
