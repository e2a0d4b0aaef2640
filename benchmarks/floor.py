"""The bare network calls of one iteration, back to back in one process: the floor that no architecture gets under."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.method_settings import TAILORPO, TailorPOSettings
from pipeline.policy import Policy
from pipeline.prompts import load_train_prompts
from pipeline.rewards import load_reward
from pipeline.scoring import LatentScorer

# Of predicted images, which may have a decoder of their own; 0 is that of finished ones.
A_TIME = 1


class BareCalls:
    """The networks of a run in this process, called at the run's batch sizes on random latents."""

    def __init__(self, settings: RunSettings, threads: int) -> None:
        """Load the policy, the decoder and the reward; `threads` is for torch.

        Raises:
            ValueError: the run is none of TailorPO's, or has several rewards.
        """
        if settings.method.name != TAILORPO or not isinstance(settings.method, TailorPOSettings):
            raise ValueError(f"the floor counts the calls of tailorpo, not of {settings.method.name!r}")
        if not isinstance(settings.prompts.train, str):
            raise ValueError("the floor needs no Ray, which reads the columns of data sets; name a text file")
        torch.set_num_threads(threads)
        self.settings = settings
        self.method = settings.method
        device, dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
        self.policy = Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)
        if len(settings.rewards) > 1:
            raise ValueError(f"the floor is that of a run with one reward, not of {settings.reward_title}; name one")
        (trained,) = settings.rewards
        reward = load_reward(trained.name, trained.path, device, dtype, trained.scale)
        pool = settings.reward_actors
        decoder = LatentDecoder.load(
            settings.model.path,
            device,
            dtype,
            pool.decode_chunk,
            pool.gradient_chunk,
            pool.step_decoder,
            settings.model.revision,
        )
        self.scorer = LatentScorer(decoder, reward)
        prompts = load_train_prompts(settings.prompts.train)
        self.prompts = [prompts[index % len(prompts)] for index in range(2 * settings.rollout.batch_size)]

    def phases(self, repeats: int = 5) -> dict[str, float]:
        """Seconds of one iteration by phase, each call timed `repeats` times and its median taken."""
        settings, batch = self.settings, self.settings.rollout.batch_size
        batches = settings.rollout.trajectories // batch
        trained, steps = len(self.method.trained_steps), settings.sampling.num_steps
        guided = trained if self.method.guidance is not None else 0

        def per_iteration(call: Callable[[], object], count: int) -> float:
            return batches * count * _median_seconds(call, repeats) if count else 0.0

        micro = settings.learner.micro_batch_size
        learner_calls = settings.learner.inner_epochs * settings.records_per_iteration // micro
        return {
            "policy": per_iteration(lambda: self._predict(batch), steps - trained + guided)
            + per_iteration(lambda: self._predict(2 * batch), trained),
            "reference": per_iteration(lambda: self._predict(batch), trained),
            "policy_gradient": per_iteration(lambda: self._differentiate_latents(batch), guided),
            "score": per_iteration(lambda: self._score(2 * batch, A_TIME), trained)
            + per_iteration(lambda: self._score(batch, A_TIME), guided)
            + per_iteration(lambda: self._score(batch, timestep=0), 1),
            "score_gradient": per_iteration(lambda: self._score_with_gradient(batch), guided),
            "learn": learner_calls * _median_seconds(lambda: self._learn(micro), repeats),
        }

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, *self.policy.latent_shape, device=self.policy.device)

    def _texts(self, count: int) -> list[str]:
        return (self.prompts * (count // len(self.prompts) + 1))[:count]

    def _predict(self, count: int) -> None:
        self.policy.predict(self._latents(count), 0, self._texts(count))

    def _differentiate_latents(self, count: int) -> None:
        latents = self._latents(count).requires_grad_()
        torch.autograd.grad(self.policy.forward(latents, 0, self._texts(count)).sum(), latents)

    def _score(self, count: int, timestep: int) -> None:
        self.scorer.score(self._latents(count), self._texts(count), timestep)

    def _score_with_gradient(self, count: int) -> None:
        self.scorer.score_with_gradient(self._latents(count), self._texts(count), A_TIME)

    def _learn(self, count: int) -> None:
        self.policy.forward(self._latents(count), 0, self._texts(count)).sum().backward()


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        _synchronise()
        started = time.perf_counter()
        call()
        _synchronise()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
