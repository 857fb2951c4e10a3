"""Register a trained model in MLflow, and move the alias `champion` to it if it is better."""

from __future__ import annotations

from pathlib import Path

from dualflow.commands.export import export
from dualflow.commands.model_runs import TRAINING, training_of
from dualflow.errors import CheckpointError
from dualflow.evaluation.held_out import METRIC, HeldOutScores, compare_paired, held_out_scores, study_of
from dualflow.layout import Layout
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.temporaries import scratch_folder
from dualflow.tracking.model_registry import WEIGHTS, Champion, ModelRegistry, Signature


def publish(model: Path, name: str, tracking_uri: str, licence: str = "") -> list[str]:
    """Register the bundle of a model as a version of `name`; return what happened, in sentences.

    The alias `champion` moves only to a version that is better on the same held-out people, in a paired comparison of
    METRIC. The first version with scores becomes the champion.

    Args:
        model: folder of a trained model, or a bundle.
        name: name of the registered model.
        tracking_uri: MLflow tracking URI: a local SQLite file or a server.
        licence: licence of the weights.

    Raises:
        CheckpointError: there is no model, or it does not verify.
        ConfigError: the name or the URI cannot be used.
        CommitError: the server is unreachable or refuses the version.
    """
    registry = ModelRegistry(name, tracking_uri)  # an error before the work starts
    with scratch_folder() as folder:
        bundle = folder / "bundle"
        export(model, bundle, licence)
        card = load_card(bundle)
        layout = study_of(model, card)
        scores = None if layout is None else held_out_scores(layout, card)
        version = registry.register(
            bundle,
            Signature(2 * card.source_channels, len(card.side.names), card.shape),
            experiment=card.study.name,
            model=card.name,
            tags=_tags(card, scores),
            scores=None if scores is None else scores.model_dump_json(),
            training=_training_tags(layout, card),
        )
    state = "is registered" if version.created else "was registered before, with the same files"
    sentences = [f"{card.label}: models:/{name}/{version.number} {state}"]
    champion = registry.champion()
    moves, sentence = _decide(version.number, scores, champion)
    if moves:
        registry.set_champion(version.number)
    return [*sentences, sentence]


def _training_tags(layout: Layout | None, card: ModelCard) -> dict[str, str] | None:
    """Tags of the run that trained the model; None if its study is elsewhere."""
    if layout is None or not (training := training_of(layout, card.name, card.seed)):
        return None
    return {"model": card.name, "seed": str(card.seed), TRAINING: training}


def _decide(number: str, scores: HeldOutScores | None, champion: Champion | None) -> tuple[bool, str]:
    """Whether the alias moves to version `number`, and why."""
    if champion is not None and champion.number == number:
        return False, f"version {number} is the champion"
    stays = "there is no champion yet" if champion is None else f"version {champion.number} stays the champion"
    if scores is None:
        return False, (
            f"{stays}: version {number} has no {METRIC} on held-out people; publish the folder of a model that "
            "`dualflow run` evaluated"
        )
    if champion is None:
        return True, f"version {number} is the champion, as the first with scores on held-out people"
    if champion.scores is None:
        return False, f"{stays}: it has no scores to compare with; move the alias in MLflow if you know better"
    successor = f"version {number} is the champion: it has the weights of version {champion.number} and new scores"
    try:
        reference = HeldOutScores.parse(champion.scores)
    except CheckpointError as error:
        if scores.weights == champion.weights:
            return True, successor
        return False, f"{stays}: its {error}; evaluate it anew with `dualflow run` and publish it again"
    comparison = compare_paired(scores, reference)
    if comparison is None and scores.weights == champion.weights:
        return True, successor
    if scores.protocol != reference.protocol:
        return False, (
            f"{stays}: its scores are of {reference.protocol}, those of version {number} of {scores.protocol}, so the "
            "two cannot be compared; evaluate the champion with these options too and publish it again"
        )
    if comparison is None:
        common = len(scores.people.keys() & reference.people.keys())
        return False, (
            f"{stays}: the held-out people differ ({len(scores.people)} of version {number}, {len(reference.people)} "
            f"of the champion, {common} in both with the same preprocessing), so the two cannot be compared"
        )
    if comparison.verdict == "better":
        return True, f"version {number} is the champion instead of version {champion.number}: {comparison.text}"
    relation = "worse" if comparison.verdict == "worse" else "not clearly better"
    return False, f"{stays}: version {number} is {relation}, {comparison.text}"


def _tags(card: ModelCard, scores: HeldOutScores | None) -> dict[str, str]:
    values = {
        "study": card.study.name,
        "model": card.name,
        "seed": card.seed,
        "kind": card.kind,
        "version": card.dualflow,
        "data_digest": card.data_digest,
    }
    if scores is not None:
        values |= {
            "held_out_digest": scores.digest,
            "held_out_people": len(scores.people),
            METRIC: f"{scores.mean:.6f}",
        }
    return {WEIGHTS: card.weights_sha256} | {f"dualflow.{key}": str(value) for key, value in values.items()}
