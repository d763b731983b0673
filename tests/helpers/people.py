"""Synthetic people for runs of tests, drawn once for all tests, because that takes longer than several steps."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from autoreid.config import Data
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.training_data import generate_people
from tests.helpers import DRAWN_PEOPLE


def place_people(data: Data) -> None:
    """Do what `generate_people` does, with copies of what has been drawn. Not by two processes at a time."""
    for name in {*data.sources, *data.targets} & {*data.synthetic}:
        people, root = data.synthetic[name], data.root / name
        if not root.exists():
            drawn = (
                Path(os.environ[DRAWN_PEOPLE]) / hashlib.sha256(people.model_dump_json().encode()).hexdigest()
            )
            write_synthetic_people(drawn, people)
            shutil.copytree(drawn, root)
    generate_people(data)  # checks that they are the people of the config
