import diffusers
import pytest
import torch

from partita.layers.noise_process import SCHEDULERS, DiffusionSampling, NoiseProcess, seeded_noise

ALL = [(objective, name) for objective, names in SCHEDULERS.items() for name in names]
NOISES = ["squaredcos_cap_v2", "linear", "scaled_linear"]
MEAN, DEVIATION = 1.5, 0.6


def factors(process, noise_level):
    """Signal and noise at a level that a network sees, from the definition of the process."""
    if process.objective == "flow":
        return 1 - noise_level, noise_level
    alpha = float(process.alphas[round(noise_level * 1000)])
    return alpha**0.5, (1 - alpha) ** 0.5


def ideal(process, deviation):
    """The best prediction for data of N(MEAN, deviation²): the expectations of data and noise given the noisy data."""

    def predict(x, noise_level):
        signal, sigma = factors(process, float(noise_level))
        surprise = (x - signal * MEAN) / (signal**2 * deviation**2 + sigma**2)
        clean, noise = MEAN + signal * deviation**2 * surprise, sigma * surprise
        return {"flow": noise - clean, "v": signal * noise - sigma * clean, "epsilon": noise}[process.objective]

    return predict


def draw(process, sampling, predict, seeds=range(32), shape=(4, 64), **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return process.sampler(sampling).run(predict, seeded_noise(generators, shape), generators, **options)


@pytest.mark.parametrize(("objective", "name"), ALL)
def test_the_best_prediction_gives_the_distribution_of_the_data(objective, name):
    process = NoiseProcess(objective)
    samples = draw(process, DiffusionSampling(name, 150), ideal(process, DEVIATION))
    assert abs(samples.mean() - MEAN) < 0.02
    assert abs(samples.std() - DEVIATION) < 0.02


@pytest.mark.parametrize("noise", ["linear", "scaled_linear"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_other_schedules_do_too(noise, name):
    process = NoiseProcess("v", noise)
    samples = draw(process, DiffusionSampling(name, 300), ideal(process, DEVIATION))
    assert abs(samples.mean() - MEAN) < 0.02
    assert abs(samples.std() - DEVIATION) < 0.02


@pytest.mark.parametrize(("objective", "name"), ALL)
@pytest.mark.parametrize("steps", [1, 7, 61])
def test_a_single_point_is_reached_exactly(objective, name, steps):
    process = NoiseProcess(objective)
    samples = draw(process, DiffusionSampling(name, steps), ideal(process, 0.0), seeds=range(3))
    torch.testing.assert_close(samples, torch.full_like(samples, MEAN), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("objective", "name"), ALL)
@pytest.mark.parametrize("steps", [1, 13, 61])
def test_sampling_sees_the_levels_of_training(objective, name, steps):
    """Data whose noise is known: what the network sees at a level is what training mixes there."""
    process = NoiseProcess(objective)
    clean, seen = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(9)), []
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    noise = seeded_noise(generators, (2, 5))

    def predict(x, noise_level):
        signal, sigma = factors(process, float(noise_level))
        seen.append(float(noise_level))
        torch.testing.assert_close(x[:, :, :4], (signal * clean + sigma * noise)[:, :, :4], atol=1e-4, rtol=1e-4)
        return torch.zeros_like(x)

    process.sampler(DiffusionSampling(name, steps)).run(predict, noise, generators, known=clean[:, :, :4])
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(1 if objective == "flow" else (len(process.alphas) - 1) / 1000, abs=1.1e-3)


@pytest.mark.parametrize("objective", SCHEDULERS)
def test_training_mixes_and_targets_as_defined(objective):
    torch.manual_seed(0)
    process = NoiseProcess(objective)
    clean = torch.randn(64, 2, 3)
    noisy, noise_level, target = process.noised(clean)
    assert noise_level.shape == (64,)
    assert 0 <= noise_level.min() < 0.05
    assert 0.95 < noise_level.max() <= 1
    for i in range(64):
        signal, sigma = factors(process, float(noise_level[i]))
        noise = (noisy[i] - signal * clean[i]) / max(sigma, 1e-4)
        expected = {"flow": noise - clean[i], "v": signal * noise - sigma * clean[i], "epsilon": noise}[objective]
        torch.testing.assert_close(target[i], expected, atol=2e-2, rtol=2e-2)


def test_flow_mixes_as_diffusers_does():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    torch.manual_seed(0)
    clean = torch.randn(1, 2, 3)
    noisy, noise_level, target = NoiseProcess("flow").noised(clean)
    timestep = scheduler.timesteps[(scheduler.timesteps / 1000 - noise_level).abs().argmin()]
    close = scheduler.scale_noise(clean, timestep[None], target + clean)
    torch.testing.assert_close(noisy, close, atol=5e-3, rtol=0)


@pytest.mark.parametrize("noise", NOISES)
def test_schedules_are_those_of_diffusers_and_end_with_some_signal(noise):
    options = {"beta_start": 0.0015, "beta_end": 0.0195} if noise == "scaled_linear" else {}
    whole = diffusers.DDPMScheduler(beta_schedule=noise, **options).alphas_cumprod
    alphas = NoiseProcess("v", noise).alphas
    assert len(alphas) == (996 if noise == "squaredcos_cap_v2" else 1000)
    torch.testing.assert_close(alphas, whole[: len(alphas)])
    assert 0.5 * torch.log(alphas[-1] / (1 - alphas[-1])) > -5.1


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_is_that_of_diffusers(steps):
    process = NoiseProcess("v", "linear")  # 1000 steps, which 10 and 50 divide
    reference = diffusers.DDIMScheduler(
        trained_betas=process.betas.numpy(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    reference.set_timesteps(steps)
    predict = ideal(process, DEVIATION)
    state = seeded_noise([torch.Generator().manual_seed(0)], (2, 8))
    for timestep in reference.timesteps:
        state = reference.step(predict(state, timestep / 1000), timestep, state).prev_sample
    torch.testing.assert_close(
        draw(process, DiffusionSampling("ddim", steps), predict, [0], (2, 8)), state, atol=1e-4, rtol=0
    )


def test_levels_of_a_batch_are_spread_and_each_is_distributed_as_named():
    torch.manual_seed(0)
    clean = torch.zeros(10, 1, 1)
    first = torch.stack([NoiseProcess("flow").noised(clean).noise_level for _ in range(2000)])
    spread = first.sort(1).values
    torch.testing.assert_close(spread.diff(dim=1), torch.full((2000, 9), 0.1), atol=1e-5, rtol=0)
    assert abs(first[:, 3].mean() - 0.5) < 0.02
    assert abs(first[:, 3].std() - 12**-0.5) < 0.02
    logits = torch.cat(
        [NoiseProcess("flow", noise_levels="logit_normal").noised(clean).noise_level for _ in range(2000)]
    ).logit()
    assert abs(logits.mean()) < 0.02
    assert abs(logits.std() - 1) < 0.02


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_sample_depends_on_its_seed_alone(name):
    process = NoiseProcess("epsilon")
    predict = ideal(process, DEVIATION)
    together = draw(process, DiffusionSampling(name, 20), predict, [4, 5, 6])
    torch.testing.assert_close(
        draw(process, DiffusionSampling(name, 20), predict, [5])[0], together[1], atol=1e-5, rtol=0
    )
    assert not torch.allclose(together[0], together[1])


def test_steps_are_counted():
    counted = []
    process = NoiseProcess("flow")
    draw(
        process,
        DiffusionSampling("heun", 3),
        ideal(process, 1.0),
        progress=lambda done, total: counted.append((done, total)),
    )
    assert counted == [(i, 5) for i in range(1, 6)]


def test_mistakes_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="scheduler must be one of ddim, ddpm, dpm, euler, heun, unipc"):
        DiffusionSampling("pndm")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        DiffusionSampling(steps=0)
    with pytest.raises(ValueError, match=r"no scheduler 'ddim' for the objective flow: use euler, heun, dpm, unipc"):
        NoiseProcess("flow").sampler(DiffusionSampling("ddim"))
    with pytest.raises(ValueError, match="has 996 steps"):
        NoiseProcess("v").check(DiffusionSampling("ddim", 997))
    NoiseProcess("v").check(DiffusionSampling("ddim", 996))
    with pytest.raises(ValueError, match="objective must be one of"):
        NoiseProcess("score")
    with pytest.raises(ValueError, match="logit_normal is for the objective flow"):
        NoiseProcess("v", noise_levels="logit_normal")
