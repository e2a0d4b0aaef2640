"""What the report says around its numbers."""

from collections.abc import Sequence

from pipeline.report.wording import listed

HELD_OUT = (
    "Base and aligned model draw the same prompts from the same noise, without candidates and without guidance by "
    "the reward."
)

NOT_HELD_OUT = "These prompts are those that were trained on, as in the paper: what holds for others is not seen here."

INTERVAL_OVER_PAIRS = (
    "The interval of a single run is that of its mean difference over pairs; the images of a prompt are resampled "
    "together. It speaks of this run: one with another seed can differ by more than it tells."
)

INTERVAL_OVER_SEEDS = (
    "The interval over several seeds adds two errors, as squares: that of the seeds (Student's, of the runs' mean "
    "differences, which is wide for few seeds), and that of the prompts, which all runs share. One that leaves zero "
    "out tells a change from chance."
)

BETWEEN_METHODS = (
    "Images of two methods whose runs name the same reward, drawn for the same prompts from the same noise, are "
    "compared pair by pair and seed by seed. No correction is made for the number of comparisons."
)

HACKING = (
    "A reward can rise because images got better, or because the model found what the reward overlooks. These "
    "measures were not trained on: an honest gain leaves them about where they were."
)

ROLLOUT_REWARD = (
    "The mean reward of the images that the rollouts finish, over what had been spent on the policy that drew "
    "them. TailorPO's rollouts go on from the better of two candidates, and guidance moves that along the reward's "
    "gradient, so their images score above what the same policy draws by itself, with guidance far above; other "
    "methods' rollouts choose no better ones. To compare methods, read the held-out evaluation."
)

BASE_COMES_FIRST = "The first point is the base model."

COSTS_EXPLAINED = (
    "A network call is one latent forward through the network, with both branches of classifier-free guidance, by "
    "the rollouts, the reference or the learner, or of Diffusion-DPO, whose loss needs but one of them, with that; "
    "neither backwards are counted, nor decoding and scoring, of which step-wise methods need more: two candidates "
    "or more at every trained step, where D3PO and DDPO score finished images. Time is that of rollouts and learning, "
    "without checkpoints, sample grids, evaluation, and the pauses of an interrupted run."
)

BANDS = (
    "A line is the mean over seeds, its band their minimum and maximum; both end with the shortest run. Thin "
    "lines are single runs."
)

DIAGNOSTICS = (
    "The loss of preferences is ln 2 = 0.6931 where policy and reference agree, and stays close to it while β times "
    "the margin is small; that of DDPO is a policy gradient's, about 0, and its size says nothing. Implicit accuracy "
    "is the share of pairs whose winner the policy has come to favour, compared with the reference; 0.5 is chance. The "
    "margin is by how much, as a log-ratio without β. The drift is half the squared distance between the means of "
    "policy and reference, in standard deviations of the step. Ties are pairs without a preference; they are not "
    "trained on."
)

STEPS = (
    "Steps are counted as those that remain: a high number is a noisy latent. The gap is the winner's reward over "
    "the loser's, before guidance. A guided move is accepted where it raised the reward; its length is in "
    "standard deviations of the step."
)

SPREAD = (
    "A measure has moved where the interval of its change leaves zero out and the change is larger than the base "
    "model's own spread: the difference that drawing it a second time from other noise would exceed once in 20 times."
)

PAIRS = (
    "Base beside aligned, from the same noise; above each pair the change of the first reward. Best rose most, worst "
    "fell most, median is about what most pairs do."
)

PICTURES = (
    "Of each method, the run of the lowest seed. Sample grids show what the base model and the newest policy draw "
    "from fixed prompts and noise. Pairs are of the evaluation's prompts: those whose reward changed most, for "
    "better or worse."
)

NOT_EVALUATED = "No run has been evaluated on held-out prompts yet."

NO_ENVIRONMENT = "The run folders do not tell what they ran on."


def learning_from_pairs(labels: Sequence[str]) -> list[str]:
    """A sentence about the methods that train on no reward; nothing where there are none."""
    verb = "learns" if len(labels) == 1 else "learn"
    return [f"{listed(labels)} {verb} from pairs of images, not from a reward."] if labels else []


def points_are_means(block: int) -> str:
    """What a point of a curve is, where it stands for several iterations."""
    return (
        f"Each point is the mean of {block} consecutive iterations; the base model is but the first iteration of the "
        "first point."
    )
