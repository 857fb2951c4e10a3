"""Configuration files: errors and overrides."""

import stat

import pytest

from dualflow.config import Config, is_private, load_config, parse_config, public_values, write_resolved
from dualflow.errors import ConfigError

MINIMAL = "study: {name: test}\n"


@pytest.mark.parametrize("number", ["1e-5", "1.e-5", "1E-05", "0.00001"])
def test_numbers_may_have_an_exponent(write, number):
    """YAML 1.1 takes those without a point for text, and JSON writes them without one."""
    options = f"model: {{preset: dualflow, options: {{source_nll_weight: {number}}}}}"
    config = load_config(write(MINIMAL + options))
    assert config.model.options["source_nll_weight"] == 1e-5
    override = f"model.options.source_nll_weight={number}"
    assert load_config(write(MINIMAL + "model: {preset: dualflow}"), [override]).model == config.model
    assert load_config(write_resolved(config)).model == config.model


def test_a_key_that_is_given_twice_is_an_error(write):
    """PyYAML would keep the second section alone; merged keys may be replaced."""
    with pytest.raises(ConfigError, match=r"'train' is given twice; join its entries under one key.* line 4"):
        load_config(write(MINIMAL + "train:\n  steps: 5\ntrain: {seeds: [1]}\n"))
    merged = "model: &flow {preset: dualflow, steps: 5}\nextra_models: {other: {<<: *flow, steps: 7}}\n"
    assert load_config(write(MINIMAL + merged)).extra_models["other"].steps == 7


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.seeds=[0, 0]", "'0' is given twice; name each once"),
        ("train.seeds=[]", "at least 1 item"),
        ("train.seeds=[-1]", "greater than or equal to 0"),
        ("baselines.models=[unet, unet]", "'unet' is given twice"),
        ("study.side=[age, age]", "'age' is given twice"),
    ],
)
def test_lists_name_each_value_once(write, setting, words):
    """Else files would be written twice, or scores counted twice."""
    with pytest.raises(ConfigError, match=words):
        load_config(write(MINIMAL), [setting])


def test_paths_may_begin_in_the_home_folder(write, monkeypatch):
    """A folder named `~` would tempt its owner to remove the home folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(load_config(write(MINIMAL), ["study.results=~/results"]).study.results) == "/home/someone/results"


@pytest.mark.parametrize(
    ("uri", "mode"),
    [("postgresql://person:secret@host/mlflow", 0o600), ("sqlite:///results/mlflow.db", 0o666)],
)
def test_a_resolved_configuration_with_a_password_is_private(write, tmp_path, uri, mode):
    """The steps need the password; a file of an earlier version that others can read is replaced."""
    config = load_config(write(MINIMAL), [f"study.results={tmp_path}", f"tracking.uri={uri}"])
    path = write_resolved(config)
    path.chmod(0o666)
    write_resolved(config)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert load_config(path).tracking.uri == uri


def test_a_resolved_configuration_keeps_any_character(write, tmp_path):
    """It is JSON, whose escapes of characters outside of the basic plane YAML reads as two."""
    config = load_config(write(MINIMAL), [f"study.results={tmp_path}/\U0001f9e0"])
    assert load_config(write_resolved(config)).study.results == config.study.results


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "train: {stesp: 5}", r"unknown key 'train\.stesp'; did you mean 'steps'\?"),
        (MINIMAL + "trainn: {}", r"unknown key 'trainn'; did you mean 'train'\?"),
        (MINIMAL + "cohort: {zzz: 1}", r"unknown key 'cohort\.zzz'; choose from: law, missing_target, seed, subjects"),
        (MINIMAL + "extra_models: {a: {prest: c_glow}}", r"unknown key 'extra_models\.a\.prest'.*'preset'"),
        (MINIMAL + "impute: {draw: 10}", r"unknown key 'impute\.draw'; did you mean 'draws'\?"),
        (
            MINIMAL + "baselines: {training: {unet: {rate: 1}}}",
            r"unknown key 'baselines\.training\.unet\.rate'; choose from: learning_rate, steps, width",
        ),
    ],
)
def test_an_unknown_key_is_an_error(write, text, message):
    """The error suggests the closest key, or lists the existing keys."""
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (MINIMAL + "train: {steps: many}", ["train.steps", "'many'", "integer"]),
        (MINIMAL + "split: {test: 1.5}", ["split.test", "1.5", "less than 1"]),
        (MINIMAL + "train: {precision: half}", ["train.precision", "'half'", "'auto', 'float32' or 'bfloat16'"]),
        ("study: {name: 'a b'}", ["study.name = 'a b': expected text of letters, digits, _ and - only"]),
        ("study: {name: a, target: FDGG}", ["unknown modality 'FDGG'", "FDG, FLAIR"]),
        ("study: {name: a, extra_sources: [ASL]}", ["unknown modality 'ASL'", "CBF"]),
        ("study: {name: a, extra_sources: [T1w]}", ["T1w, T1w, FDG", "name each modality once"]),
        ("study: {name: a, target: T1w}", ["T1w, T1w", "name each modality once"]),
        ("study: {name: a, samples: y, runs: last}", ["samples names the files itself; remove them"]),
        ("study: {name: a, samples: y, join_sessions: true}", ["samples names the pairs; remove it"]),
        (
            "study: {name: a, where: {FLAIR: {acq: x}}}",
            ["where names FLAIR, expected modalities of the study: T1w, FDG"],
        ),
        ("study: {name: a, where: {T1w: {run: 1}}}", ["study.where.T1w.run = 1", "valid string"]),
        (
            MINIMAL + "impute: {model: stacked}",
            ["impute.model = stacked is no model", "dualflow, mean_image"],
        ),
        ("study: {name: 2024}", ["study.name = 2024: expected text of letters"]),
        (MINIMAL + "tracking: {group: a/b}", ["tracking.group = 'a/b': expected text of letters, digits, spaces"]),
        (MINIMAL + "split: {folds: 1}", ["split.folds = 1: expected a whole number of at least 2, or leave-one-out"]),
        (MINIMAL + "split: {folds: all}", ["split.folds = 'all': expected a whole number"]),
        (MINIMAL + "split: {folds: 3, fold: 3}", ["no fold 3", "counted from 0"]),
        (MINIMAL + "split: {fold: 1}", ["no fold 1 with folds = None"]),
        (MINIMAL + "split: {folds: 3, test_subjects: ['1']}", ["test_subjects", "keep one of the two"]),
        (MINIMAL + "preprocess: {reference_region: ponz}", ["region 'ponz'", "pons", "mask in template space"]),
        (
            MINIMAL + "preprocess: {reference_region: no/mask.nii}",
            ["preprocess.reference_region = no/mask.nii: does not exist", "cerebellum"],
        ),
        (MINIMAL + "preprocess: {pet_window_s: [600, 300]}", ["600 to 300", "a start before its end"]),
        (MINIMAL + "preprocess: {pet_window_s: [0, .inf]}", ["pet_window_s.1", "finite"]),
        (MINIMAL + "preprocess: {pet_resolution_mm: 8}", ["fill scanner_resolution_mm"]),
        (MINIMAL + "preprocess: {scanner_resolution_mm: {A: 6}}", ["no effect without pet_resolution_mm", "set the"]),
        (MINIMAL + "preprocess: {pet_resolution_mm: 5, scanner_resolution_mm: {A: 6}}", ["5, finer than", "'A': 6"]),
        (
            MINIMAL + "baselines: {models: [unet, unett]}",
            ["baselines.models.1 = 'unett'", "'rectified_flow' or 'latent_diffusion'"],
        ),
        (MINIMAL + "baselines: {training: {stacked: {steps: 3}}}", ["'stacked'", "closed form", "choose from: unet"]),
        (MINIMAL + "train: {augment: {gamma: 0.5}}", ["augment.gamma = 0.5 has no effect", "augment.probability is 0"]),
        (MINIMAL + "train: {augment: {flip: yes}}", ["train.augment.flip: expected a number, not yes or no"]),
        (MINIMAL + "train: {max_skipped: no}", ["train.max_skipped: expected a number"]),
        (MINIMAL + "train: {seeds: [yes]}", ["train.seeds: expected a number"]),
        (
            MINIMAL + "preprocess: {pet_resolution_mm: 8, scanner_resolution_mm: {A: yes}}",
            ["scanner_resolution_mm.A: expected a number"],
        ),
        (MINIMAL + "split: {test_subjects: [010]}", ["'010' is 8 in YAML; write 8, or '010' in quotes for text"]),
        (MINIMAL + "train: {steps: 1:30}", ["'1:30' is 90 in YAML", "line"]),
        ("cohort: {subjects: 3}", ["study", "required"]),
    ],
)
def test_an_invalid_value_is_an_error(write, text, parts):
    """The error has the file, the key, the value and the expectation."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in ["study.yaml", *parts]), str(caught.value)
    assert not any(term in str(caught.value) for term in ("constrained-", "literal[", "pattern")), str(caught.value)


def test_all_mistakes_are_reported_together(write):
    """One error lists all invalid values."""
    with pytest.raises(ConfigError, match=r"train\.steps.*convert\.samples"):
        load_config(write(MINIMAL + "train: {steps: 0}\nconvert: {samples: 1}"))


@pytest.mark.parametrize("text", ["- a\n", "", "study: [", "text"])
def test_a_file_without_a_mapping_is_an_error(write, text):
    """The error names a file with a list, text, broken YAML or no content."""
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        load_config(write(text))


def test_a_missing_file_is_an_error(tmp_path):
    """The error has the path."""
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_yaml_tags_are_not_executed(write):
    """A YAML tag that would run code is refused."""
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(write("study: !!python/object/apply:os.getcwd []"))


def test_overrides_replace_values_and_are_validated(write):
    """`section.key=value` replaces or adds a value of any type."""
    path = write(MINIMAL + "train: {steps: 5}")
    config = load_config(path, ["train.steps=7", "split.test=0.5", "train.seeds=[1, 2]", "model.options.low_rank=4"])
    assert (config.train.steps, config.split.test, config.train.seeds) == (7, 0.5, (1, 2))
    assert config.model.options == {"low_rank": 4}
    with pytest.raises(ConfigError, match=r"train\.stesp"):
        load_config(path, ["train.stesp=7"])
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(path, ["train.steps"])


def test_an_override_changes_one_section_alone(write):
    """Sections that share an anchor of YAML, or are merged from it, keep their values."""
    text = "extra_models:\n  a: &x {preset: c_glow, options: {levels: 2}}\n  b: *x\n  c: {<<: *x, steps: 5}\n"
    models = load_config(write(MINIMAL + text), ["extra_models.a.options.levels=3"]).extra_models
    assert {name: model.options["levels"] for name, model in models.items()} == {"a": 3, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"study: {name: \xe9t\xe9}", "is not UTF-8 text .*; save it as UTF-8"),
        (b"train: {steps: " + b"9" * 5000 + b"}", "is not YAML"),
        (b"study: {name: a, side: [2026-99-99]}", "is not YAML"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, content, words):
    """Bytes of another encoding, numbers and dates that do not exist, and deep nesting are configuration errors."""
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("section", sorted(set(Config.model_fields) - {"extra_models"}))
def test_an_unknown_key_of_any_section_is_named(write, section):
    """The message names the key and offers those of the section."""
    text = "study: {name: test, zzz: 1}" if section == "study" else MINIMAL + f"{section}: {{zzz: 1}}"
    with pytest.raises(ConfigError, match=rf"unknown key '{section}\.zzz'; choose from: \w+"):
        load_config(write(text))


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("study: {name: a}", "brain"),
        ("study: {name: a, target: FMM}", "cerebellum"),
        ("study: {name: a, target: MK6240}\npreprocess: {spacing_mm: 6}", "cerebellar_grey"),
        ("study: {name: a, target: PIB}\npreprocess: {reference_region: pons}", "pons"),
        ("study: {name: a, target: AV45}\npreprocess: {reference_region: null}", "cerebellum"),
    ],
)
def test_the_tracer_has_its_reference_region(write, text, region):
    """Amyloid and tau are not scaled by the whole brain unless the configuration says so."""
    assert load_config(write(text)).preprocess.reference_region == region


def test_a_fault_of_a_whole_section_does_not_print_the_section(write):
    """The message names section and fault only."""
    with pytest.raises(ConfigError, match=r"study\.yaml: study: unknown modality 'XYZ'"):
        load_config(write("study: {name: a, target: XYZ}"))


@pytest.mark.parametrize(
    ("section", "name"),
    [("", "dualflow"), ("impute: {draws: 5}", "dualflow"), ("impute: {model: stacked_mixture}", "stacked_mixture")],
)
def test_the_main_flow_imputes_unless_a_model_is_named(write, section, name):
    """The key names any trained model."""
    assert load_config(write(MINIMAL + section)).imputing_model == name


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("study: {name: x}\n", "train.steps=-5", "study.yaml with --set: train.steps = -5: "),
        ("study: [1, 2]\n", None, r"study = \[1, 2\]: expected keys with values, such as \{key: value\}"),
        ("study: {name: x}\n", "preprocess.pet_window_s=50", "= 50: expected a list, such as"),
        ("", None, "is empty, expected sections such as 'study:'"),
        ("- 1\n", None, r"holds \[1\], expected sections"),
    ],
)
def test_errors_are_plain(tmp_path, text, override, message):
    """They name neither types of Python nor a file for a value of the command line."""
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override] if override else [])


def test_public_values_name_no_subject():
    """Nor does the command of a comparison show labels of subjects."""
    labels = {"test_subjects": ["Smith"], "validation_subjects": ["Doe"]}
    config = parse_config({"study": {"name": "x"}, "split": labels})
    assert not set(labels) & set(public_values(config)["split"])
    assert [is_private(f"split.{key}") for key in (*labels, "folds")] == [True, True, False]
