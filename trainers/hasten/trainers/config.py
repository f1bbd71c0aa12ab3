"""From YAML to strict models: safe loading, dotted overrides, errors that name the user's key."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hasten.trainers.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Spec(BaseModel):
    """Base of everything that a user writes: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 with the numbers of YAML 1.2 (``3e-4`` is a number) and no silently repeated key."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """``1e5`` without a point is the whole number that its writer means: a count may be written so."""
    text = str(loader.construct_scalar(node))
    if re.fullmatch(r"[-+]?\d{1,9}[eE]\+?\d{1,2}", text):
        return int(float(text))
    return float(loader.construct_yaml_float(node))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            line = node.start_mark.line + 1
            raise ConfigError(str(key), f"the key appears twice in the block that starts at line {line}")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for; ``origin`` names it in errors.

    Raises:
        ConfigError: the text is not YAML, repeats a key, or asks for an object.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}, line {mark.line + 1}" if mark else origin
        raise ConfigError(place, f"not valid YAML: {getattr(error, 'problem', None) or error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not a text file") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(str(path), "must be a mapping of keys to values at its top level")
    return value


def find(name_or_path: str, shipped: Path, kind: str) -> Path:
    """The file that a user means by a path or by the name of a shipped recipe, study or pipeline."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    candidate = shipped / f"{name_or_path}.yaml"
    if candidate.is_file() and "/" not in name_or_path:
        return candidate
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise ConfigError(
        name_or_path, f"no such {kind}", f"Give a path to a YAML file, or a shipped name: {names}."
    )


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["curriculum.mu=0.4"]`` as dotted keys and YAML values."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(pair, "an override has the form key=value", "For example: -s curriculum.mu=0.4")
        overrides[key.strip()] = parse_yaml(text, f"-s {key.strip()}")
    return overrides


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``data`` with changes by key: a dotted key changes one field, a plain key replaces its block.

    A dotted change of a block's ``kind`` starts that block anew: the fields of the old kind mean
    nothing to the new one. Changes of ``kind`` are therefore applied before their siblings.
    """
    result = copy.deepcopy(dict(data))
    for key, value in sorted(
        changes.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".kind"))
    ):
        *parents, last = key.split(".")
        block = result
        for depth, name in enumerate(parents):
            inner = block.get(name)
            if inner is None:
                inner = block[name] = {}
            if not isinstance(inner, dict):
                raise ConfigError(
                    ".".join(parents[: depth + 1]), "has no keys below it", f"Cannot set {key}."
                )
            block = inner
        if last == "kind" and block.get("kind", value) != value:
            block.clear()
        block[last] = copy.deepcopy(value)
    return result


def validate(model: type[Model], data: Any, *, prefix: str = "") -> Model:
    """``data`` as a ``model``; the first error speaks of the user's dotted key, all of them are listed.

    Raises:
        ConfigError: unknown or ill-typed keys, impossible values.
    """
    try:
        # By way of JSON: strict about types there, but with lists for tuples and whole numbers for floats.
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems = [_key_and_problem(item, data) for item in error.errors()]
    subject, problem = problems[0]
    rest = "\n  ".join(f"{prefix}{key}: {text}" for key, text in problems[1:])
    raise ConfigError(f"{prefix}{subject}".rstrip("."), problem, f"Also {rest}" if rest else "")


def _key_and_problem(item: Any, data: Any) -> tuple[str, str]:
    key, problem = _dotted(item["loc"], data), _problem(item)
    if item["type"] == "union_tag_invalid":
        key = f"{key}.kind" if key else "kind"
    if item["type"] == "value_error" and ": " in problem:
        # A rule over several keys names its key itself, relative to the block that it stands in.
        inner, _, problem = problem.partition(": ")
        key = f"{key}.{inner}" if key else inner
    return key, problem


def _dotted(location: tuple[int | str, ...], data: Any) -> str:
    """The user's key: pydantic puts a union's tag into the location, where the data has no such key."""
    parts: list[str] = []
    value = data
    for name in location:
        if isinstance(value, Mapping):
            if name not in value and value.get("kind") == name:
                continue
            value = value.get(name)
        elif isinstance(value, (list, tuple)) and isinstance(name, int):
            value = value[name] if name < len(value) else None
        elif value is not None:
            continue  # below a number or a text there are no keys: again a union's tag
        parts.append(str(name))
    return ".".join(parts)


def _problem(item: Any) -> str:
    """One pydantic error as a clause about the key."""
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "is required"
        case "union_tag_invalid":
            return f"must be one of {context['expected_tags']}, not {context['tag']!r}"
        case "union_tag_not_found":
            return "needs a kind"
        case "value_error":
            return str(context["error"])
        case _:
            message = re.sub(r"^(Input|String|Tuple|List|Value) should", "must", item["msg"])
            return f"{message}, got {item['input']!r}"
