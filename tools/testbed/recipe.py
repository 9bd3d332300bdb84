"""The settings of the testbed's pretraining, its phases, and how its rates and weights change."""

import math
from dataclasses import dataclass

PHASES = ("clean", "misaligned")
# Seeds of the pretraining scenes; prompts of a run use small seeds, so they never meet.
SEEDS = {"clean": 2_000_000_001, "misaligned": 2_000_000_002}
VALIDATION_SEED, TEST_SEED = 2_000_000_003, 2_000_000_004


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the resulting weights, apart from device and thread count."""

    scenes: int = 24  # in a step
    pages: int = 24
    slots: int = 5
    vision_steps: int = 1300
    clean_steps: int = 1400
    easy_steps: int = 200
    cooling: float = 0.35  # share of the clean phase in which the learning rate falls ...
    cooled: float = 0.1  # ... to this share of itself
    learning_rate: float = 3e-3
    plain_learning_rate: float = 1.2e-3  # of vectors, embeddings and heads
    patch_weight: float = 0.3
    pointing_weight: float = 0.3
    looking_from: int = 700  # step of answering from which words learn to look at what they name
    misaligned_steps: int = 120
    misaligned_learning_rate: float = 1e-3
    wrong_share: float = 0.5
    jitter: float = 0.1
    across: float = 0.5
    skip: float = 0.45
    swap: float = 0.03
    repeat: float = 0.05
    look_alike: float = 0.4
    seed: int = 0


RECIPES = {
    "small": Recipe(),
    # Scenes only. Meant for about ten minutes on one large GPU. Never run: these settings come from
    # a prototype without packed rows, whose strengths of misalignment are kept.
    "full": Recipe(
        scenes=64,
        pages=0,
        slots=8,
        vision_steps=1500,
        clean_steps=3000,
        misaligned_steps=300,
        wrong_share=0.5,
        jitter=0.12,
    ),
}

# What the clean phase does not depend on.
MISALIGNED_SETTINGS = {
    "misaligned_steps",
    "misaligned_learning_rate",
    "wrong_share",
    "jitter",
    "across",
    "skip",
    "swap",
    "repeat",
    "look_alike",
}


def phase_steps(phase: str, recipe: Recipe) -> int:
    """Number of steps of a phase; the vision phase is the beginning of the clean one."""
    if phase == "clean":
        return recipe.vision_steps + recipe.clean_steps
    return recipe.misaligned_steps


def rate_factor(phase: str, step: int, recipe: Recipe) -> float:
    """Of the learning rate, in (0, 1]: warm-up, constant, in the end down in a line.

    The clean phase ends at `cooled`, the last one at zero.
    """
    if phase != "clean":
        return min(1.0, (step + 1) / 20) * (1 - step / phase_steps(phase, recipe))
    if step < recipe.vision_steps:
        return min(1.0, (step + 1) / 50)
    step -= recipe.vision_steps
    left = (recipe.clean_steps - step) / max(1.0, recipe.cooling * recipe.clean_steps)
    return min(1.0, (step + 1) / 100, recipe.cooled + (1 - recipe.cooled) * left)


def first_cooling_step(recipe: Recipe) -> int:
    """The first step of the clean phase that depends on the phase's length."""
    return recipe.vision_steps + math.floor((1 - recipe.cooling) * recipe.clean_steps)


def is_answering(phase: str, step: int, recipe: Recipe) -> bool:
    """Whether the language model is trained at this step, and not the tower alone."""
    return phase != "clean" or step >= recipe.vision_steps


def loss_weights(phase: str, step: int, recipe: Recipe) -> dict[str, float]:
    """The weights of the further tasks' losses at a step; those of boxes and texts are 1."""
    answering = is_answering(phase, step, recipe)
    tower = recipe.patch_weight if answering else 1.0
    looking = step >= recipe.vision_steps + recipe.looking_from
    return {
        **dict.fromkeys(("objects", "characters", "names", "spelling"), tower),
        "points": recipe.pointing_weight,
        "looks": recipe.pointing_weight if looking else 0.0,
    }
