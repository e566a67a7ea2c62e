"""Packaging of metarl: the distribution is ``metarl-sb3``, the import name ``metarl``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
# Read, not imported: importing metarl would need torch before it is installed.
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "metarl" / "version.py").read_text(encoding="utf-8")).group(1)

# No extra for Meta-World: its releases pin mujoco 3.3.0, which has not got the contact sensors that the Ants read.
EXTRAS = {
    "dev": [
        "hypothesis>=6.100",
        "imageio>=2.14.1",  # gymnasium.make("Ant-v5") imports it
        "mypy>=1.15",
        "pandas-stubs>=2.2",
        "pytest>=8.2",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "setuptools>=77",
        "types-PyYAML>=6.0.12",
        "types-tqdm>=4.66",
    ],
}

setup(
    name="metarl-sb3",
    version=VERSION,
    description="Meta-reinforcement learning for Stable-Baselines3: starts that learn new tasks in a few steps",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="metarl contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["metarl*"]),
    package_data={
        "metarl": ["py.typed", *(f"**/*.{kind}" for kind in ("yml", "csv", "md", "xml", "json", "safetensors", "npz"))],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "ale-py>=0.11",
        "gymnasium>=1.1,<2",
        "matplotlib>=3.8",
        "mujoco>=3.17",
        "numpy>=1.26",
        "pandas>=2.2",
        "PyYAML>=6.0.1",
        "rich>=13.7",
        "safetensors>=0.4.3",
        "sb3-contrib>=2.9,<3",
        "stable-baselines3>=2.9,<3",
        "tensorboard>=2.16",
        "torch>=2.8",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["metarl = metarl.zoo.__main__:script"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
