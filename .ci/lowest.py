"""Prints `name==version` for every dependency: the oldest version that pyproject.toml allows.

    python .ci/lowest.py > oldest.txt && pip install -r oldest.txt '.[all,test]'

A dependency without a lower bound is an error: nobody would know what it was tried with.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
TOOLS = "dev"
"""The extra that is left out: what checks the code is no part of what runs it."""

REQUIREMENT = re.compile(
    r"""
    (?P<name> [\w.-]+ )
    (?P<extras> \[ [^]]* \] )?
    \s* (?: >= \s* (?P<lowest> [\w.]+ ) )?
    (?P<rest> .* )
    """,
    re.VERBOSE,
)


def lowest(project: Path = PROJECT) -> Iterator[str]:
    """Each requirement with its lowest version; its environment marker stays.

    Raises:
        ValueError: a requirement has none.
    """
    metadata = tomllib.loads(project.read_text())["project"]
    requirements = set(metadata["dependencies"])
    for extra, more in metadata["optional-dependencies"].items():
        requirements.update(more if extra != TOOLS else ())
    for requirement in sorted(requirements):
        found = REQUIREMENT.fullmatch(requirement)
        if found is None or (found["lowest"] is None and found["name"] != metadata["name"]):
            raise ValueError(f"{project.name}: {requirement!r} has no lowest version; write {requirement}>=...")
        if found["name"] != metadata["name"]:  # the project's own extras are no versions
            marker = found["rest"].partition(";")[2]
            yield f"{found['name']}{found['extras'] or ''}=={found['lowest']}{';' if marker else ''}{marker}"


if __name__ == "__main__":
    try:
        print("\n".join(lowest()))
    except ValueError as error:
        sys.exit(str(error))
