"""docs/rewards.md, from what every reward of the registry declares: `make docs` writes it."""

import inspect

from pipeline.rewards import REWARDS, reward_class
from pipeline.rewards.base import Reward

INTRODUCTION = """# Rewards

A reward scores images against their prompts, higher is better. `reward.name` is the one a run trains on, and
`evaluation.rewards` are reported beside it:

```yaml
reward: {name: pickscore}
evaluation:
  rewards: [{name: aesthetic}, {name: "hpsv2.1", path: /models/HPS_v2.1_compressed.pt}]
```

This page is made from the classes of `pipeline/rewards/` by `make docs`.

"""

COLUMNS = ("name", "score", "usual", "scale", "gradient", "default weights", "MiB", "licence of the weights")

NOTES = """
cos is that of the angle between the embeddings of image and prompt. *Usual* is the mean that the paper
(arXiv:2502.01667) reports for Stable Diffusion v1.5 on its animal prompts, where it reports one. *Scale* is the unit in
which guidance measures a reward (`method.guidance.delta`): a round figure for how far images of a base model lie apart,
not a measurement; `reward.scale` replaces it. *Gradient* says whether a reward can guide. *MiB* is the memory of the
weights in half precision, activations not included; with `model.dtype` float32 it is twice that. A reward for
evaluation only cannot be trained on.

## Where weights come from

Without `reward.path` the default weights are taken from the hub, or from its cache on the machine. A machine that
reaches no hub needs them in that cache, with `HF_HUB_OFFLINE=1` so that libraries do not ask for minutes anyway, or on
a disk:

    hf download yuvalkirstain/PickScore_v1 config.json model.safetensors
    hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K preprocessor_config.json tokenizer.json tokenizer_config.json
    hf download xswu/HPSv2 HPS_v2_compressed.pt
    hf download trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth
    hf download openai/clip-vit-large-patch14 config.json model.safetensors preprocessor_config.json tokenizer.json
    hf download THUDM/ImageReward ImageReward.pt med_config.json
    hf download google-bert/bert-base-uncased tokenizer.json tokenizer_config.json vocab.txt
    hf download SPO-Diffusion-Models/Step-Aware_Preference_Models sd-v1-5_step-aware_preference_model.bin

`reward.path` takes another hub id, or a directory or file of that disk: of `hpsv2`, `hpsv2.1`, `aesthetic`,
`image_reward` and `spo_step_aware` a file of weights under any name, of `clip`, `clip_score` and `pickscore` the one
that transformers loads from its directory (`model.safetensors` or `pytorch_model.bin`, or the index of either).
`scene_judge` takes a directory alone, `http` a URL. What the weights of a reward do not bring, a tokenizer or the CLIP
they build on, is taken from the same directory where it lies there, and from the hub otherwise: a directory with
everything in it needs no hub. Files are looked for before the first actor starts, and the message names all that are
missing, with the command that fetches each. Reward actors load them, so on a cluster every node they run on must see
the path.

Images stay tensors on the way to the network, since guidance needs the gradient; PIL, with which the reference scorers
resize, has none. The docstrings of `pipeline/rewards/clip_preprocessing.py` give the difference, and tests hold it.
`benchmarks/parity/` compares whole scores with reference software.

"""


def rewards_page() -> str:
    """The page, in Markdown: a table of all rewards, where weights come from, and a section for each reward."""
    rewards = [reward_class(name) for name in REWARDS]
    table = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS)), *(" | ".join(_row(kind)) for kind in rewards)]
    sections = (f"## `{kind.name}`\n\n{_description(kind)}\n" for kind in rewards)
    return INTRODUCTION + "".join(f"| {line} |\n" for line in table) + NOTES + "\n".join(sections)


def _row(kind: type[Reward]) -> tuple[str, ...]:
    given = f"`{kind.default_path}`" if kind.default_path else "`reward.path`" if kind.needs_path else "none"
    return (
        f"`{kind.name}`" + (" (evaluation only)" if kind.held_out_only else ""),
        kind.formula,
        kind.usual_scores,
        f"{kind.scale:g}",
        "yes" if kind.differentiable else "no",
        given,
        "" if kind.weights_mebibytes is None else str(kind.weights_mebibytes),
        kind.licence,
    )


def _description(kind: type[Reward]) -> str:
    """The docstring of the class up to its list of attributes."""
    return inspect.cleandoc(kind.__doc__ or "").split("\n\nAttributes:")[0].replace("``", "`")
