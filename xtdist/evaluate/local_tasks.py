"""YAML files of tasks for the lm-evaluation-harness: checked here, because the harness takes what
it does not know without a word, and runs no code of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api import metrics as _registers  # noqa: F401
from lm_eval.api.instance import OutputType
from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager

from xtdist.config import ConfigError, UserError
from xtdist.config.fields import nearest
from xtdist.config.load import read_yaml

YAML = (".yaml", ".yml")
KEYS = {f.name for f in fields(TaskConfig)} - {"unsafe_code", "custom_dataset"}
OUTPUTS = get_args(OutputType)


def sandbox_templates() -> None:
    """The harness renders templates of tasks with all that Python can do; from now on with what
    text needs."""
    safe = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    safe.filters |= {"regex_replace": utils.regex_replace}
    utils.env = safe


def choose(tasks: Sequence[str]) -> tuple[TaskManager, list[Any]]:
    """What the harness takes: names of its own tasks, and the tasks of YAML files with their data.

    Raises:
        ConfigError: an unknown name, two of one name, or a file that is wrong.
    """
    paths = [name for name in tasks if name.endswith(YAML) or "/" in name or Path(name).is_dir()]
    names = [name for name in tasks if name not in paths]
    trees = [tree for path in paths for tree in local_tasks(Path(path))]
    _check_different([*names, *(tree["task"] for tree in trees)])
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"--tasks: {name!r} is no task of the harness, and no YAML file or folder of them"
            )
    return manager, [*names, *(_built(manager, tree) for tree in trees)]


def _check_different(names: Sequence[str]) -> None:
    """The harness would keep one of two, and say nothing."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--tasks: {name!r} twice; give each task a name of its own (task:)")


def local_tasks(path: Path) -> list[dict[str, Any]]:
    """The task of a YAML file, or those of a folder. Paths of data files are relative to the YAML;
    Python functions (``!function``) are code and not read.

    Raises:
        ConfigError: no such file, no task in it, no data where it says, or what is not known.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in YAML)
        if not files:
            raise ConfigError(f"{path}: no YAML file of a task there")
    return [_local_task(file) for file in files]


def _built(manager: TaskManager, tree: dict[str, Any]) -> Any:
    """The harness's task of a checked ``tree``, with its data.

    Raises:
        ConfigError: the harness can't build it: no such split or column, for example.
    """
    try:
        (task,) = manager.load([tree])["tasks"].values()
    except UserError:
        raise
    except Exception as e:  # whatever templates and data of others do
        reason = str(e).strip().split("\n")[0] or "no reason given"
        raise ConfigError(f"--tasks: {tree['task']}: {type(e).__name__}: {reason:.300}") from e
    return task


def _local_task(file: Path) -> dict[str, Any]:
    tree, _ = read_yaml(file)
    if not isinstance(tree.get("task"), str) or not isinstance(tree.get("dataset_path"), str):
        raise ConfigError(f"{file}: not a task: it must have task (a name) and dataset_path")
    _check_keys(file, tree)
    _check_one_of(file, "output_type", tree.get("output_type", "generate_until"), OUTPUTS)
    shots = tree.get("num_fewshot")
    if shots is not None and (type(shots) is not int or shots < 0):
        raise ConfigError(f"{file}: num_fewshot: got {shots!r}; give 0 or more")
    _check_metrics(file, tree.get("metric_list"))
    keywords = tree.get("dataset_kwargs")
    if isinstance(keywords, dict) and "data_files" in keywords:
        keywords["data_files"] = _absolute(keywords["data_files"], file.parent)
    return tree


def _check_metrics(file: Path, metrics: Any) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, list) or not all(isinstance(m, dict) for m in metrics):
        raise ConfigError(f"{file}: metric_list: give a list of {{metric: NAME}}")
    for number, metric in enumerate(metrics):
        key = f"metric_list.{number}"
        _check_one_of(file, f"{key}.metric", metric.get("metric"), METRIC_REGISTRY)
        if "hf_evaluate" in metric:
            raise ConfigError(f"{file}: {key}.hf_evaluate: a metric of a hub is code, never run")
        if "aggregation" in metric:
            _check_one_of(file, f"{key}.aggregation", metric["aggregation"], AGGREGATION_REGISTRY)


def _check_keys(file: Path, found: dict[str, Any]) -> None:
    for name in found:
        if name not in KEYS:
            near = nearest(str(name), KEYS)
            hint = f"did you mean {near!r}?" if near else "a task has none of that name here"
            raise ConfigError(f"{file}: {name}: unknown key; {hint}")


def _check_one_of(file: Path, key: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(f"{file}: {key}: got {value!r:.80}; give one of {names}")


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    path = (folder / str(files)).resolve()
    if not path.is_file():
        raise ConfigError(f"dataset_kwargs.data_files: there is no {path}")
    return str(path)
