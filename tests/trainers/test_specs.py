from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec

Build = Callable[..., RunSpec]

# Another valid value for every key that enters the identity.
OTHER: dict[str, Any] = {
    "data.resolution": 16,
    "data.holdout": 0.3,
    "data.flip": True,
    "data.shuffle": 2048,
    "model.channels": 24,
    "model.multipliers": [1, 2],
    "model.layers": 2,
    "model.attention": True,
    "model.head_dim": 4,
    "model.groups": 8,
    "model.dropout": 0.1,
    "model.scale_shift": True,
    "model.resampling": "resnet",
    "diffusion.schedule": "linear",
    "diffusion.shift": 2.0,
    "diffusion.predict": "v",
    "diffusion.timesteps": 500,
    "curriculum.mu": 0.4,
    "curriculum.sigma": 0.3,
    "curriculum.coordinate": "noise_rate",
    "curriculum.start": 0.1,
    "curriculum.ramp": 0.5,
    "curriculum.peak": 0.9,
    "curriculum.draws": "independent",
    "optimizer.lr": 1e-3,
    "optimizer.batch": 32,
    "optimizer.warmup": 0.2,
    "optimizer.beta2": 0.99,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip": 1.0,
    "momentum.beta": 0.8,
    "momentum.floor": 0.4,
    "momentum.delay": 0.25,
    "momentum.shape": "cosine",
    "momentum.compensation": "none",
    "ema.stds": [0.05],
    "ema.snapshots": 0.5,
    "precision": "bf16",
    "budget.images": 1280,
    "budget.seed": 1,
    "eval.loss.every": 0.2,
    "eval.loss.images": 16,
    "eval.loss.bins": 5,
    "eval.raw": True,
    "eval.samples.at": [0.5, 1.0],
    "eval.samples.images": 8,
    "eval.samples.steps": 3,
    "eval.samples.sampler": "heun",
    "eval.samples.metrics": ["frechet", "kid"],
    "eval.samples.reference": 100,
    "eval.grid.every": 0.2,
    "eval.grid.images": 9,
    "eval.grid.steps": 3,
}
# Keys with one value so far, and blocks whose kind is changed as a whole below.
FIXED = {"eval.samples.guidance", "momentum.final"}  # need classes, and another shape than Demon's
KINDS = {
    "model.kind": {"kind": "dit"},
    "diffusion.kind": {"kind": "edm"},
    "conditioning.kind": {"kind": "classes"},
    "curriculum.kind": {"kind": "uniform"},
    "weighting.kind": {"kind": "p2"},
    "optimizer.kind": {"kind": "sgd", "lr": 0.1, "convention": "average"},
    "optimizer.schedule.kind": {"kind": "cosine"},
    "momentum.kind": {"kind": "constant"},
    "ema.kind": {"kind": "classic"},
    "eval.samples.features.kind": {"kind": "classifier"},
}
APART = {
    "name",
    "data.source",
    "start",
    "initial",
}  # the last two were no keys when runs were first fingerprinted


def flat(spec: RunSpec) -> dict[str, Any]:
    return specs.flatten(spec.model_dump(mode="json"))


def test_fingerprint_changes_with_everything_that_is_computed(spec_of: Build) -> None:
    base = spec_of()
    keys = {key for key in flat(base) if not key.startswith("execution.")}
    assert keys == OTHER.keys() | FIXED | KINDS.keys() | APART
    fingerprints = {spec_of({key: value}).fingerprint("d") for key, value in OTHER.items()}
    fingerprints |= {
        spec_of({key.removesuffix(".kind"): block}).fingerprint("d") for key, block in KINDS.items()
    }
    fingerprints |= {base.fingerprint("d"), base.fingerprint("another")}
    assert len(fingerprints) == len(OTHER) + len(KINDS) + 2


@pytest.mark.parametrize(
    ("changes", "fingerprint"),
    [
        ({}, "e4443ff72a76"),
        ({"curriculum": {"kind": "uniform"}}, "4b9534a22971"),
        ({"diffusion": {"kind": "edm"}, "ema": {"kind": "classic"}}, "536014080a0d"),
    ],
)
def test_fingerprints_stay_what_they_were(changes: dict[str, Any], fingerprint: str, spec_of: Build) -> None:
    """Stored runs are found again: these were recorded before there were later keys."""
    assert spec_of(changes).fingerprint("d") == fingerprint


def test_where_a_run_starts_is_part_of_what_it_computes(spec_of: Build) -> None:
    starts = [("a-0123456789ab", 64), ("a-0123456789ab", 128), ("a-ba9876543210", 64)]
    specs = [spec_of({"start": {"run": run, "images": images}}) for run, images in starts]
    assert len({spec.fingerprint("d") for spec in (spec_of(), *specs)}) == 4
    specs += [spec_of({"initial": {"run": run}}) for run in ("a-0123456789ab", "a-ba9876543210")]
    assert len({spec.fingerprint("d") for spec in (spec_of(), *specs)}) == 6
    assert spec_of({"start": None, "initial": None}).fingerprint("d") == spec_of().fingerprint("d")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"data.source": "s3://bucket/elsewhere"},
        {"execution.launcher": "ray"},
        {"execution.workers": 2},
        {"execution.threads": 4},
        {"execution.cpus": 2.0},
        {"execution.gpus": 0.5},
        {"execution.checkpoint_every": 0.5},
        {"execution.reader": "streaming"},
        {"execution.resize_seconds": 5.0},
        {"execution.evaluation": "background"},
        {"execution.micro_batch": 8},
        {"execution.channels_last": True},
        {"execution.compile": "default"},
    ],
)
def test_fingerprint_ignores_name_address_and_execution(changes: dict[str, Any], spec_of: Build) -> None:
    assert spec_of(changes) != spec_of()
    assert spec_of(changes).fingerprint("d") == spec_of().fingerprint("d")


def test_every_execution_key_is_tried_above(spec_of: Build) -> None:
    keys = {key for key in flat(spec_of()) if key.startswith("execution.")}
    tried = test_fingerprint_ignores_name_address_and_execution.pytestmark[0].args[1]
    assert keys <= {key for changes in tried for key in changes}


def test_fingerprint_knows_values_and_not_their_spelling(spec_of: Build) -> None:
    """A default written out, an integer for a float, another order of keys: the same run."""
    same = [
        spec_of({"optimizer.weight_decay": 0}),
        spec_of({"curriculum.peak": 1}),
        spec_of({"curriculum": {"sigma": 0.2, "mu": 0.3, "kind": "clts", "ramp": 1.0}}),
    ]
    assert {spec.fingerprint("d") for spec in same} == {spec_of().fingerprint("d")}
    assert len(spec_of().fingerprint("d")) == 12


def test_dump_reads_back_as_the_same_run(spec_of: Build) -> None:
    spec = spec_of({"ema.stds": [0.05, 0.2], "curriculum": {"kind": "static", "sigma": 1 / 3}})
    for text in (
        json.dumps(spec.model_dump(mode="json")),
        yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False),
    ):
        assert config.validate(RunSpec, config.parse_yaml(text, "dump")) == spec


def test_overrides_round_trip(spec_of: Build) -> None:
    """Each key of a resolved recipe, given back as ``-s key=value``, changes nothing."""
    spec = spec_of()
    dump = spec.model_dump(mode="json")
    for key, value in flat(spec).items():
        changes = config.parse_overrides([f"{key}={json.dumps(value)}"])
        assert changes == {key: value}
        assert config.override(dump, changes) == dump
    assert config.override({}, flat(spec)) == dump


@given(
    lr=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**63 - 1),
    mu=st.floats(0.0, 1.0),
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,62}", fullmatch=True),
)
def test_numbers_keep_their_value_through_yaml(
    lr: float, seed: int, mu: float, name: str, spec_of: Build
) -> None:
    pairs = [f"optimizer.lr={lr}", f"budget.seed={seed}", f"curriculum.mu={mu!r}", f"name={json.dumps(name)}"]
    spec = spec_of(config.parse_overrides(pairs))
    assert (spec.optimizer.lr, spec.budget.seed, spec.name) == (lr, seed, name)
    assert spec.curriculum.model_dump()["mu"] == mu


def test_override_copies_and_leaves_the_rest(recipe: dict[str, Any]) -> None:
    before = copy.deepcopy(recipe)
    value = {"kind": "uniform"}
    changed = config.override(recipe, {"curriculum": value, "optimizer.lr": 1.0})
    value["kind"] = "changed later"
    assert recipe == before
    assert changed["curriculum"] == {"kind": "uniform"}
    assert changed["optimizer"] == recipe["optimizer"] | {"lr": 1.0}


def test_another_kind_starts_its_block_anew(recipe: dict[str, Any]) -> None:
    for changes in (
        {"curriculum.kind": "static", "curriculum.sigma": 0.5},
        {"curriculum.sigma": 0.5, "curriculum.kind": "static"},
    ):
        assert config.override(recipe, changes)["curriculum"] == {"kind": "static", "sigma": 0.5}
    kept = config.override(recipe, {"curriculum.kind": "clts", "curriculum.sigma": 0.5})["curriculum"]
    assert kept == {"kind": "clts", "mu": 0.3, "sigma": 0.5}


def refusal(build: Build, changes: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build(changes)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"curriculum.mu": 7}, "curriculum.mu", "less than or equal to 1"),
        ({"curriculum.mu": "wide"}, "curriculum.mu", "number"),
        ({"curriculum.mu": float("nan")}, "curriculum.mu", "finite"),
        ({"curriculum.sgima": 0.2}, "curriculum.sgima", "unknown key"),
        ({"curriculum": {"kind": "clts"}}, "curriculum.sigma", "is required"),
        ({"curriculum.kind": "cltz"}, "curriculum.kind", "clts"),
        ({"curriculum": {"mu": 0.3}}, "curriculum", "kind"),
        ({"curriculum": "clts"}, "curriculum", ""),
        ({"curriculum.start": 0.7, "curriculum.ramp": 0.5}, "curriculum.start", "before ramp"),
        ({"momentum.kind": "adam"}, "momentum.kind", "mdlrc"),
        ({"momentum.beta": 1.0}, "momentum.beta", "less than 1"),
        ({"model.kind": "resnet"}, "model.kind", "unet"),
        ({"model.channels": 12}, "model.channels", "multiple of 8"),
        ({"model.multipliers": [1, 0]}, "model.multipliers.1", "greater than or equal to 1"),
        ({"model.attention": "maybe"}, "model.attention", "bool"),
        ({"optimizer.lrr": 0.1}, "optimizer.lrr", "unknown key"),
        ({"optimizer.lr": "fast"}, "optimizer.lr", "number"),
        ({"optimizer.lr": 0}, "optimizer.lr", "greater than 0"),
        ({"optimizer.batch": 64.5}, "optimizer.batch", "integer"),
        ({"optimizer.batch": 0}, "optimizer.batch", "greater than or equal to 1"),
        ({"optimizer.batch": [64]}, "optimizer.batch", "integer"),
        ({"optimizer": None}, "optimizer", ""),
        ({"ema.stds": []}, "ema.stds", "at least 1"),
        ({"ema.stds": [0.05, 0.5]}, "ema.stds.1", "less than 0.289"),
        ({"eval.samples.at": [1.5]}, "eval.samples.at.0", "less than or equal to 1"),
        ({"eval.loss.evry": 0.1}, "eval.loss.evry", "unknown key"),
        ({"budget.seed": -1}, "budget.seed", "greater than or equal to 0"),
        ({"precision": "fp8"}, "precision", "bf16"),
        ({"execution.workers": 0}, "execution.workers", "greater than or equal to 1"),
        ({"execution.launcher": "slurm"}, "execution.launcher", "local"),
        ({"curiculum.mu": 0.4}, "curiculum", "unknown key"),
        ({"name": "no/slash"}, "name", "pattern"),
        ({"optimizer.batch": 1000}, "optimizer.batch", "more than budget.images (640)"),
        ({"execution.workers": 65}, "execution.workers", "batch of 64"),
        ({"execution.workers": [2, 1], "execution.launcher": "ray"}, "execution.workers", "least, most"),
        ({"execution.workers": [1, 2]}, "execution.workers", "launcher: ray"),
        ({"execution.workers": [0, 2]}, "execution.workers.0", "greater than or equal to 1"),
        ({"execution.workers": "all"}, "execution.workers", "integer"),
        ({"model": {"kind": "named", "name": "dit-xxl"}}, "model.name", "dit-xl/2"),
        ({"eval.samples.guidance": 2.0}, "eval.samples.guidance", "kind: classes"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1}}, "momentum", "heavy_ball"),
        ({"momentum.compensation": "inverse"}, "momentum", "blow up"),
        ({"optimizer.schedule.kind": "cosine", "momentum": {"kind": "one_cycle"}}, "momentum", "one_cycle"),
        ({"weighting": {"kind": "twin", "of": {"kind": "clts", "sigma": 0.2}}}, "weighting", "counts twice"),
        (
            {
                "curriculum": {"kind": "second_moment"},
                "weighting": {"kind": "twin", "of": {"kind": "clts", "sigma": 1}},
            },
            "weighting",
            "divides its own density out",
        ),
        ({"data.resolution": 6, "model.multipliers": [1, 1, 1]}, "data.resolution", "halved"),
        ({"start": {"run": "a-0123456789ab", "images": 640}}, "start.images", "leaves nothing"),
        ({"start": {"run": "a", "images": 64}}, "start.run", "pattern"),
    ],
)
def test_errors_name_the_users_key(changes: dict[str, Any], subject: str, words: str, spec_of: Build) -> None:
    error = refusal(spec_of, changes)
    assert error.subject == subject
    assert words in error.problem
    # No union's tag, no class of ours, no link to a library's manual.
    assert "clts." not in str(error)
    assert "RunSpec" not in str(error)
    assert "pydantic" not in str(error)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer.batch": True}, {"budget.seed": False}, {"optimizer.lr": True}, {"model.attention": 1}],
)
def test_booleans_and_numbers_are_not_each_other(changes: dict[str, Any], spec_of: Build) -> None:
    """YAML reads ``yes`` and ``on`` as true: ``batch: yes`` must not train one image at a time."""
    assert refusal(spec_of, changes).subject == next(iter(changes))


def test_all_errors_are_listed(spec_of: Build) -> None:
    error = refusal(spec_of, {"curriculum.mu": 7, "optimizer.lr": -1, "momentum.beta": 2})
    for key in ("curriculum.mu", "optimizer.lr", "momentum.beta"):
        assert key in str(error)


def test_prefix_goes_before_every_key(recipe: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.validate(RunSpec, config.override(recipe, {"curriculum.mu": 7}), prefix="base.")
    assert caught.value.subject == "base.curriculum.mu"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3e4", 30_000),
        ("+1e3", 1_000),
        ("-2E-3", -2e-3),
        ("1.5e2", 150.0),
        (".5e1", 5.0),
        ("2.e3", 2e3),
        ("3.0e-4", 3e-4),
        ("1e-4x", "1e-4x"),
        ("e5", "e5"),
        ("'3e-4'", "3e-4"),
        ("0.3", 0.3),
        ("12", 12),
        ("[1e-3, 2]", [1e-3, 2]),
        ("{lr: 3e-4}", {"lr": 3e-4}),
    ],
)
def test_scientific_numbers_are_numbers(text: str, value: Any) -> None:
    parsed = config.parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


def test_learning_rate_without_a_dot(spec_of: Build) -> None:
    assert spec_of(config.parse_overrides(["optimizer.lr=3e-4"])).optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", "twice"),
        ("optimizer:\n  lr: 1\n  batch: 2\n  lr: 3\n", "twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "tag"),
        ("name: !!python/object:os.PathLike {}\n", "tag"),
        ("name: !!python/name:os.getcwd\n", "tag"),
        ("name: [1, 2\n", "not valid YAML"),
        ("name: a: b\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        specs.load(str(path))
    assert words in str(caught.value)


def test_bad_yaml_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: a\nmodel: {kind: unet\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml, line 3"):
        specs.load(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"- a\n- b\n", "mapping"), (b"", "mapping"), (b"\xff\xfe\x00", "text"), (None, "cannot be read")],
)
def test_files_that_are_no_recipe(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        specs.load(str(path))
    assert words in caught.value.problem
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("pair", ["curriculum.mu", "=3", " =3", ""])
def test_an_override_needs_a_key_and_a_value(pair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_overrides([pair])
    assert "key=value" in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["name.first", "optimizer.lr.start"])
def test_no_keys_below_a_value(key: str, spec_of: Build) -> None:
    error = refusal(spec_of, {key: 1})
    assert error.subject == key.rpartition(".")[0]
    assert key in error.remedy


RECIPES = sorted(path.stem for path in specs.RECIPES.glob("*.yaml"))


def test_digits_is_shipped() -> None:
    assert "digits" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_load_and_say_what_to_expect(name: str) -> None:
    spec = specs.load(name)
    assert spec.name == name
    assert spec == specs.load(str(specs.RECIPES / f"{name}.yaml"))
    header = (specs.RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert header.startswith("# ")


def test_shipped_recipe_takes_overrides() -> None:
    assert specs.load("digits", {"budget.seed": 3}).budget.seed == 3
    with pytest.raises(ConfigError, match=r"curriculum\.mu"):
        specs.load("digits", {"curriculum": {"kind": "clts", "sigma": 0.2, "mu": 7}})


@pytest.mark.parametrize("name", ["digitz", "no/such", "digits/"])
def test_missing_recipe_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs.load(name)
    assert caught.value.subject == name
    for shipped in RECIPES:
        assert shipped in caught.value.remedy


def test_flatten_joins_keys_with_dots() -> None:
    assert specs.flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}
