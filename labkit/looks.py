"""A trainer's look at held-out data: numbers of all its rows together, whatever the size of a batch.

A mean of batches' means depends on how rows fall into batches: a short batch's tokens would weigh more than a long
one's. So each row gives its own numbers, and one formula is applied to the columns of all of them.
"""

import torch
from transformers.trainer_utils import EvalLoopOutput

from labkit import log_probs, models
from labkit.errors import Stopped
from labkit.recorder import Recorder


class Looks:
    """For trainers of transformers and trl, before them among the bases: `evaluate` over rows, which can be stopped.

    A stage says what a row gives (`columns`) and what they are together (`summary`): here, the mean loss of a token.
    """

    recorder: Recorder  # the one that `training.fit` is given

    def columns(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch's numbers, each of shape (rows,)."""
        rest = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        nats, tokens = log_probs.of_rows(self.model, batch["labels"], **rest)
        return {"nats": -nats, "tokens": tokens}

    def summary(self, nats: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        """The numbers of all held-out rows, from their columns in fp64, each of shape (rows,)."""
        return {"loss": nats.sum() / tokens.sum()}

    @torch.no_grad()
    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        self.model.eval()
        parts: dict[str, list] = {}
        for batch in dataloader:
            with models.autocast():
                found = self.columns(batch)
            for name, column in self.accelerator.gather_for_metrics(found).items():
                parts.setdefault(name, []).append(column.cpu().double())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        columns = {name: torch.cat(part) for name, part in parts.items()}
        numbers = {f"{metric_key_prefix}_{name}": float(value) for name, value in self.summary(**columns).items()}
        return EvalLoopOutput(None, None, numbers, len(next(iter(columns.values()))))

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """A look; what it draws at random is its own, so that training goes on as if there had been none.

        A stop amid a training ends that too, after a checkpoint, which the trainer then writes.
        """
        try:
            with torch.random.fork_rng():
                return super().evaluate(*args, **kwargs)
        except (Stopped, KeyboardInterrupt) as stopped:
            if self.state.global_step == self.recorder.first_step:  # nothing to keep that is not kept
                raise
            self.recorder.interrupted = stopped
            self.control.should_training_stop = self.control.should_save = True
            return {}


def pairs(model, labels: torch.Tensor, **inputs) -> dict[str, torch.Tensor]:
    """Columns of pairs, whose rows are the chosen ones and then the rejected: each of shape (pairs,).

    chosen, rejected: log p of the answer; chosen_tokens, rejected_tokens: how many tokens that is.
    """
    sums, tokens = log_probs.of_rows(model, labels, **inputs)
    (chosen, rejected), (chosen_tokens, rejected_tokens) = sums.chunk(2), tokens.chunk(2)
    return {
        "chosen": chosen,
        "rejected": rejected,
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
    }
