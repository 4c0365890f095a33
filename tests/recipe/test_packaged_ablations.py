"""The packaged ablations are valid, share what they can, and have the seeds that p-values need."""

import pytest

from partita.evaluation.ablate import plan_tasks
from partita.evaluation.ablation import read_ablation
from partita.evaluation.ablation_runs import make_runs
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


def test_the_stages_of_either_variant_take_as_many_steps():
    """Without the semantic stage, the coarse one has its steps, too."""
    runs, _ = make_runs(read_ablation("musiclm-semantic-stage", ["seed=0"]))
    steps = [sum(stage.fit_options.steps for stage in run.outline.stages.values()) for run in runs]
    assert steps[0] == steps[1]
