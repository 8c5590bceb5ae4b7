"""Random engines to learn from: the simulated engine's plant with published step times and a hidden error per pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np

from berth.api.placement import Allocation
from berth.core.calibration.residuals import OperatingPoint, Predict, prediction
from berth.core.measurement.samples import StepMoments
from berth.core.render.repository import simulated_options
from berth.engine.engines.plant import Job, Plant, PlantConfig
from berth.engine.engines.simulated import plant_config
from berth.estimator import hardware, models, performance
from berth.estimator.engine_model import EngineModel
from tests.unit.placement.cases import BF16, FP8, deployment

SETUPS = (
    ("llama-3.1-70b-instruct", "fp8", "H100-SXM-80", 2),
    ("llama-3.1-70b-instruct", "fp8", "H100-SXM-80", 4),
    ("llama-3.1-70b-instruct", "bf16", "A100-SXM-80", 4),
    ("llama-3.1-70b-instruct", "bf16", "A100-SXM-40", 8),
    ("llama-3.1-70b-instruct", "fp8", "H200-SXM-141", 2),
    ("llama-3.1-8b-instruct", "bf16", "H100-SXM-80", 1),
    ("llama-3.1-8b-instruct", "bf16", "A100-SXM-80", 1),
    ("qwen3-32b", "fp8", "H100-SXM-80", 2),
)
PROMPT, ANSWER, MOST = 1155, 211, 1024
BATCH_SECONDS = 20.0
REQUESTS = 200


@dataclass(frozen=True)
class Setup:
    """One way to run a model: the plant that is the truth, and the engine that is believed in."""

    engine: EngineModel
    config: PlantConfig
    gpu: str
    layout: str

    @property
    def usual(self) -> float:
        """Requests per second of a copy that is half busy, as the model believes."""
        return 0.5 * self.throughput(16)

    def throughput(self, in_flight: int) -> float:
        step = self.seconds(PROMPT, in_flight, in_flight * (PROMPT + ANSWER / 2), in_flight * PROMPT / ANSWER)
        return in_flight / (ANSWER * step)

    def seconds(self, prompt: float, decodes: float, context: float, prefill: float) -> float:
        """Of a mean iteration, as the model believes."""
        return float(self.predict(prompt)(np.array([[decodes, context, prefill]]))[0])

    def predict(self, prompt: float) -> Predict:
        return prediction(self.engine, prompt)

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint.of(8, PROMPT, ANSWER)


@cache
def setup(number: int) -> Setup:
    model, precision, gpu, tensor = SETUPS[number]
    spec = deployment(model=model, variants=(FP8, BF16)).spec
    variant = next(each for each in spec.model.variants if each.precision == precision)
    shape = Allocation(pool="p", variant=variant.name, tensor_parallel=tensor, max_batch_size=256, max_num_tokens=2048)
    options = simulated_options(models.model(model), variant, shape, gpu)
    config, _, _ = plant_config(options, pool="p")
    candidate = performance.Candidate(
        models.model(model), hardware.gpu(gpu), tensor, 1, precision, variant.effective_kv_precision,
        max_num_tokens=2048,
    )  # fmt: skip
    return Setup(performance.engine_model(candidate), config, gpu, f"{precision} tp{tensor} pp1")


def serve(found: Setup, slowness: float, rate: float, *, prompt: float = 1.0, seed: int = 0) -> StepMoments:
    """What one group's leader reports of `REQUESTS` requests at `rate`, with prompts by a factor longer."""
    config = PlantConfig(
        found.config.times, found.config.kv_tokens, found.config.max_batch_size, found.config.max_num_tokens,
        speed=slowness,
    )  # fmt: skip
    random = Random(seed)
    plant = Plant(config, seed)
    arrivals = []
    at = 0.0
    for number in range(REQUESTS):
        at += random.expovariate(rate)
        length = max(1, min(int(random.lognormvariate(6.6, 0.9) * prompt), 12000))
        answer = max(2, min(int(random.expovariate(1 / ANSWER)), MOST))
        arrivals.append((at, Job(number, length, answer, MOST)))
    moments, sums, until, clock, following = StepMoments(), [0.0] * 5, BATCH_SECONDS, 0.0, 0
    while following < REQUESTS or plant.running or plant.waiting:
        while following < REQUESTS and arrivals[following][0] <= clock:
            plant.submit(arrivals[following][1])
            following += 1
        step = plant.begin()
        if step is None:
            clock = arrivals[following][0]
            continue
        clock += step.seconds
        for place, value in enumerate((1.0, step.decodes, step.context_tokens, step.prefill_tokens, step.seconds)):
            sums[place] += value
        plant.complete(step)
        if clock >= until:
            moments, sums, until = moments + StepMoments.of(*sums), [0.0] * 5, clock + BATCH_SECONDS
    return moments + StepMoments.of(*sums)
