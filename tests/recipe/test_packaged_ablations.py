"""The packaged ablations are valid, share what they can, and have the seeds that p-values need."""

import pytest

from partita.core.part_key import PartKey
from partita.evaluation.ablate import plan_tasks
from partita.evaluation.ablation import read_ablation
from partita.evaluation.ablation_runs import make_runs, tokens_per_step
from partita.recipe.recipe_files import presets

SHARED = {
    "musiclm-semantic-stage": ["conditioners/music", "conditioners/music.embedding", "tokenizers/acoustic"],
    "musiclm-text": ["tokenizers/acoustic", "tokenizers/semantic", "tokenizers/semantic.features"],
    "musiclm-semantic-tokens": ["conditioners/music", "conditioners/music.embedding", "tokenizers/acoustic"],
}


@pytest.mark.parametrize("name", presets("ablation"))
def test_what_variants_do_not_change_is_trained_once(name):
    ablation = read_ablation(name)
    assert len(ablation.seeds) == 3
    ablation = read_ablation(name, ["seed=0"])
    runs, unfit = make_runs(ablation)
    assert not unfit
    trained = [task.part for task in plan_tasks(runs, ablation) if task.kind == "train"]
    assert len({run.variant.title for run in runs}) == 2
    assert {part: trained.count(part) for part in [*SHARED[name], "stages/fine"]} == dict.fromkeys(
        [*SHARED[name], "stages/fine"], 1
    )
    assert trained.count("stages/coarse") == 2


def test_the_stages_of_either_variant_are_trained_on_as_many_codes():
    """Without the semantic stage, the coarse one is trained longer: that variant must not lose for lack of training."""
    runs, _ = make_runs(read_ablation("musiclm-semantic-stage", ["seed=0"]))
    codes = [
        sum(
            stage.fit_options.steps * tokens_per_step(run.outline, PartKey.of("stages", name))
            for name, stage in run.outline.stages.items()
        )
        for run in runs
    ]
    assert codes[0] <= codes[1] <= 1.2 * codes[0]
