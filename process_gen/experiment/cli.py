"""Flags and errors, the same for every entry point.

    from process_gen.experiment import cli  # before anything that imports TensorFlow

    if __name__ == "__main__":  # bad flags are found before the slow imports
        cli.read_flags(config="configs/scenes.py:quick", workdir="Folder of the run.")

    ...

    if __name__ == "__main__":
        cli.run(main, (ConfigError, CheckpointError))

An error of the user ends the command with one line on stderr and exit code 2, a signal
to stop with one line and code 75 (`process_gen.distributed.stopping`); any other
exception is a bug and keeps its traceback. Importing this module silences TensorFlow,
gRPC and XLA, which read the environment when they are imported.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import select
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from process_gen.common import buckets, files
from process_gen.distributed import stopping
from process_gen.trajectory.stages import Stage

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
}
"""Environment variables that silence native libraries; those set already are kept."""

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

UNREAD = 141
"""Exit code when the reader of stdout has gone: 128 + SIGPIPE, as shells report it."""

NEAR = 0.6
"""Least similarity, in [0, 1], of a name that an error suggests."""


class CommandError(Exception):
    """A command line that cannot work; the message is one line for the user."""


# --------------------------------------------------------------------- configs


def load_config(spec: str) -> ConfigDict:
    """Loads the config `path/to/file.py` or `path/to/file.py:variant`; see `load_module` for where it looks.

    Raises:
      CommandError: no such file or variant, no `get_config` that returns a ConfigDict, or its code fails.
    """
    given, colon, variant = spec.partition(":")
    path, module = load_module(given, "get_config")
    if colon and not inspect.signature(module.get_config).parameters:
        raise CommandError(f"{path} has no variants: pass --config={path}")
    with errors_of(path):
        config = module.get_config(*([variant] if colon else []))
    if not isinstance(config, ConfigDict):
        raise CommandError(f"get_config() of {path} returns a {type(config).__name__}, not a ConfigDict")
    return _at_home(config)


def load_module(given: str, function: str) -> tuple[str, types.ModuleType]:
    """Imports a Python file that must have `function`, such as `configs/scenes.py`.

    A relative path is looked for in the working folder, beside the package, and in the package.

    Returns:
      The path where it was found, and the module.

    Raises:
      CommandError: there is no such file, it lacks the function, or its code fails.
    """
    package = pathlib.Path(__file__).parents[1]
    folders = (pathlib.Path(), package.parent, package)  # working folder, clone, wheel
    path = next((str(folder / given) for folder in folders if (folder / given).is_file()), None)
    if path is None:
        raise CommandError(
            f"there is no config file {given!r} in {os.getcwd()}, and none comes with the package: "
            "pass --config=PATH.py:variant"
        )
    if not path.endswith(".py"):
        raise CommandError(f"a config is a Python file with {function}(), {path!r} is none")
    source = importlib.util.spec_from_file_location("process_gen_config", path)
    module = importlib.util.module_from_spec(source)
    try:
        source.loader.exec_module(module)
    except Exception as error:
        raise _of_code(path, error) from error
    if not callable(getattr(module, function, None)):
        raise CommandError(f"{path} has no function {function}()")
    return path, module


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turns any exception of a config file's code inside the block into a `CommandError`."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from None
    except Exception as error:
        raise _of_code(path, error) from error


def _of_code(path: str, error: Exception) -> CommandError:
    """The error of a config file's code, or of a module that it imports, with the line where it happened."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return CommandError(f"{error.filename or path}, line {error.lineno}: {error.msg}")
    own = os.path.abspath(path)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    where = f"{path}, line {lines[-1]}" if lines else path
    return CommandError(f"{where}: {type(error).__name__}: {error}")


def _at_home(config: ConfigDict) -> ConfigDict:
    """Replaces `~` and `~user` at the start of values by that user's home folder, in place."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _at_home(value)
        elif isinstance(value, str) and value.startswith("~"):
            config[key] = os.path.expanduser(value)
    return config


def words_at_home(argv: Sequence[str]) -> list[str]:
    """Replaces `~` in the values of flags, which shells do not expand after `=`; not in prompts."""
    home = re.compile(r"(?:(?<==)|(?<=,))~[^/,]*(?=/|,|$)")

    def expanded(word: str) -> str:
        is_path = re.match(r"--?\w[\w.]*=", word) and not re.match(r"--?prompts?=", word)
        return home.sub(lambda match: os.path.expanduser(match[0]), word) if is_path else word

    return [expanded(word) for word in argv]


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of everything that can be set in a config."""
    names = []
    for key, value in config.items():
        names += leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return names


def nearest_keys(key: str, config: ConfigDict) -> list[str]:
    """The dotted names most like `key`; between names of one group only the last part counts."""
    group, _, last = key.rpartition(".")

    def likeness(name: str) -> float:
        of_group, _, of_name = name.rpartition(".")
        alone = difflib.SequenceMatcher(None, last, of_name).ratio()
        if group == of_group:
            return alone
        return max(difflib.SequenceMatcher(None, key, name).ratio(), alone - 0.15)

    scored = sorted(((likeness(name), name) for name in leaves(config)), key=lambda pair: -pair[0])
    best = scored[0][0] if scored else 0.0
    return [name for score, name in scored[:3] if score >= max(NEAR, best - 0.12)]


def check_overrides(config: ConfigDict, arguments: Iterable[str]) -> None:
    """Checks the keys of every `--config.a.b=value`; those that `group_of` adds are added.

    Raises:
      CommandError: see `group_of`; or a key is a group of keys.
    """
    matches = [re.match(r"--?(?:no)?config\.([^=]*)=?(.*)", argument) for argument in arguments]
    given = {match[1]: match[2] for match in matches if match}
    for key in given:
        name, _, last = key.rpartition(".")
        value = group_of(key, config, given.get(f"{name}.loss"))[last]
        if isinstance(value, ConfigDict):
            inside = ", ".join(value or _optional(config, key, None))
            raise CommandError(f"config.{key} is a group of keys, set one of them: {inside}")


def group_of(key: str, config: ConfigDict, loss: str | None = None) -> ConfigDict:
    """The group of keys that holds the key of that dotted name.

    What an entry of `losses` or `data.sources`, or `data.mixture`, may set, but does not, is added. `loss`
    is the loss of that entry, if it will not be the one that stands there.

    Raises:
      CommandError: the config does not have the key; the message names the nearest.
    """
    name, _, last = key.rpartition(".")
    group: Any = config
    for part in filter(None, name.split(".")):
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if isinstance(group, ConfigDict) and last not in group:
        optional = _optional(config, name, loss or group.get("loss"))
        with config.unlocked():
            group.update({last: optional[last]} if last in optional else optional)
    if not isinstance(group, ConfigDict) or last not in group:
        raise CommandError(_unknown(key, config))
    return group


def _optional(config: ConfigDict, name: str, loss: Any) -> dict[str, Any]:
    """Defaults of what the group of that name may hold: options of `loss`, keys of a source, categories."""
    found: dict[str, Any] = {}
    if name.startswith("losses."):
        from process_gen.losses import get_loss  # imports JAX, which takes seconds

        with contextlib.suppress(KeyError):  # no such loss: who builds the table says so
            found = {"pool": "", **get_loss(loss).options}
    elif name == "data.mixture":
        from process_gen.scenes import categories

        found = dict.fromkeys(categories(config.data.level), 1.0)
    elif name.startswith("data.sources."):
        from process_gen.data import sources  # imports TensorFlow Datasets, which takes seconds

        own = {key: value for key, value in config.data.items() if key not in sources.SHARED_KEYS}
        found = {"weight": 1.0, "stages": tuple(stage.value for stage in Stage), **own}
    return {key: value for key, value in found.items() if isinstance(value, (bool, int, float, str, tuple))}


def _unknown(key: str, config: ConfigDict) -> str:
    near = [f"config.{name}" for name in nearest_keys(key, config)]
    if near:
        return f"unknown config key 'config.{key}'; did you mean {' or '.join(near)}?"
    group = config.get(key.partition(".")[0])
    inside, of = (group, key.partition(".")[0]) if isinstance(group, ConfigDict) else (config, "")
    return f"unknown config key 'config.{key}'; {f'config.{of}' if of else 'config'} has {', '.join(inside)}"


# ----------------------------------------------------------------------- flags

_left_over: list[str] | None = None


def read_flags(*, config: str | None = None, workdir: str | None = None) -> None:
    """Defines the flags of a command and parses the command line; bad flags end it with exit code 2.

    Args:
      config: default of `--config`; None defines no such flag.
      workdir: help of `--workdir`, which is then required; None defines no such flag.
    """
    global _left_over
    argv = words_at_home(sys.argv)
    app.define_help_flags()
    if workdir is not None:
        flags.DEFINE_string("workdir", None, workdir)
    try:
        if config is not None:
            argv = _define_config(config, argv)
        _left_over = flags.FLAGS(argv)
        if config is not None:
            _at_home(flags.FLAGS.config)
        if workdir is not None and not flags.FLAGS.workdir:
            raise CommandError("--workdir=FOLDER is required")
    except (CommandError, flags.Error) as error:
        fail(error)


def config_with(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """Loads a config and applies flags `--config.a.b=value`, for commands whose other flags are not absl's.

    Raises:
      CommandError: see `load_config` and `check_overrides`; or a value of the wrong type.
    """
    values = flags.FlagValues()
    _define_keys(spec, overrides, values)
    try:
        values([sys.argv[0], *overrides])
    except flags.Error as error:
        raise CommandError(error) from None
    return _at_home(values.config)


def define_host_flags() -> None:
    """Defines the flags of multi-process commands; launchers that JAX detects need none of them."""
    where = "where no launcher says so (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID do too)"
    flags.DEFINE_string("coordinator", None, f"HOST:PORT of process 0, {where}.")
    flags.DEFINE_integer("num_processes", None, "How many processes run this job.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def _define_config(default: str, argv: Sequence[str]) -> list[str]:
    """Defines `--config` and a flag for each key; returns the command line without it, flag files read in."""
    words, spec = _without_config(flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False), default)
    _define_keys(spec, words, flags.FLAGS)
    flags.FLAGS["config"].default_as_str = repr(default)
    return [argv[0], *words]


def _define_keys(spec: str, words: Sequence[str], values: flags.FlagValues) -> None:
    """Loads a config and defines its flags in `values`, after a check of those that `words` sets."""
    config = load_config(spec)
    check_overrides(config, words)
    config_flags.DEFINE_config_dict(
        "config", config, "Config, as FILE.py:VARIANT.", flag_values=values, sys_argv=list(words)
    )


def _without_config(words: Iterable[str], default: str) -> tuple[list[str], str]:
    """Splits a command line into the words without `--config`, and the last value of that or `default`."""
    left, spec, words = [], default, iter(words)
    for word in words:
        if match := re.fullmatch(r"--?config(?:=(.*))?", word):
            spec = next(words, "") if match[1] is None else match[1]
        else:
            left.append(word)
    return left, spec


flags.disclaim_key_flags()  # so `--help` of a command lists them as its own


# ------------------------------------------------------------------------- run


def show_progress(text: str) -> None:
    """Prints a line to stderr; on a terminal the next one overwrites it."""
    print(text, file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n", flush=True)


def run(
    main: Callable[[Sequence[str]], int | None], expected_errors: tuple[type[Exception], ...] = ()
) -> None:
    """Runs a command and exits with what `main` returns, 75 if it was stopped, or the code of `fail`.

    If the reader of stdout goes away, as with `| head`, it exits with `UNREAD` and no message.

    Args:
      main: called with [program name], as `absl.app` does, once the flags are parsed.
      expected_errors: errors of the user, which end in `fail`, as those of buckets do. `--verbosity=1` keeps
        their traceback.
    """

    def guarded(arguments: Sequence[str]) -> int | None:
        if arguments[1:]:
            fail(f"unexpected arguments: {' '.join(arguments[1:])}")
        logging.get_absl_handler().addFilter(_ours)
        stopping.raise_on_sigterm()
        try:
            result = main(arguments)
            sys.stdout.flush()
            return result
        except stopping.Stopped as stop:
            print(f"stopped: {stop}", file=sys.stderr, flush=True)
            if stop.at_once:
                with contextlib.suppress(OSError):  # the reader of stdout may have gone
                    sys.stdout.flush()
                os._exit(stopping.EXIT_CODE)  # does not wait for threads
            return stopping.EXIT_CODE
        except (BrokenPipeError, *expected_errors) as error:
            if isinstance(error, BrokenPipeError) and nobody_reads():
                return UNREAD
            if logging.level_debug() or not isinstance(error, expected_errors):
                raise
            fail(error)
        except Exception as error:
            if not buckets.is_of_library(error):
                raise
            fail(buckets.failure(error, "a bucket failed"))

    app.run(guarded, flags_parser=_parse)


def _ours(record: Any) -> bool:
    """Log filter: keeps lines of this package, and warnings and errors of any."""
    return record.levelno > logging.converter.STANDARD_INFO or "process_gen" in record.pathname


def nobody_reads() -> bool:
    """Whether the reader of stdout has gone; if so, sends further output to the null device."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _parse(argv: Sequence[str]) -> list[str]:
    """The words that are no flags; parses the command line unless `read_flags` has done so."""
    if _left_over is not None:
        return _left_over
    try:
        return flags.FLAGS(words_at_home(argv))
    except flags.Error as error:
        fail(error)


def fail(problem: object) -> NoReturn:
    """Prints one line to stderr and ends the command.

    The exit code is the problem's `exit_code` if it has one, else 1 for a transient I/O error
    (`files.passes`), else 2. In a multi-process job launchers see this code (`hosts.leave`).
    """
    code = getattr(problem, "exit_code", 1 if files.passes(problem) else REFUSED)
    if isinstance(problem, KeyError) and problem.args:
        problem = problem.args[0]  # str() would put quotes around it
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr, flush=True)
    note = os.environ.get("PROCESS_GEN_REFUSED")  # launch/slurm.sbatch looks for it
    if code == REFUSED and note:
        with contextlib.suppress(OSError):
            pathlib.Path(note).touch()
    if (hosts := sys.modules.get("process_gen.distributed.hosts")) is not None:
        hosts.leave(code)
    sys.exit(code)


REFUSED = 2
"""Exit code of an error that only a change by the user can fix."""
