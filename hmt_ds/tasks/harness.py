"""The model ``hmt`` for lm-evaluation-harness: reads whole documents of any length, in batches.

``python -m hmt_ds.tasks.harness run --model hmt --model_args pretrained=FOLDER --tasks TASK`` takes the options of the
command ``lm_eval``.
"""

from typing import Any

import torch
from lm_eval._cli import HarnessCLI
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import setup_logging
from torch import Tensor
from tqdm import tqdm

from hmt_ds.conversion.pretrained import load_pretrained
from hmt_ds.data import load_tokenizer

WITHOUT_END = 10**9  # tokens: the harness cuts documents that are longer
AT_ONCE = 2048  # tokens of a row whose logits are held at a time: as many numbers for each as the vocabulary has tokens

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, ids of the context, ids of the continuation


@register_model("hmt")
class HarnessModel(HFLM):
    """A model of lm-evaluation-harness that runs a converted folder with the installed ``hmt_ds``, not the folder's
    code.

    Args:
        pretrained: folder that ``hmt-ds convert`` wrote, or its name on the hub.
        dtype: torch's name of the dtype of weights, such as ``bfloat16``.
        device: torch's name of the device to run on; by default a GPU if there is one, else the CPU.
        max_length: number of tokens after which a document is cut; by default never.
        options: other arguments of the harness's model ``hf``, such as ``batch_size``.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "float32",
        device: str | None = None,
        max_length: int | None = None,
        **options: Any,
    ):
        if not torch.cuda.is_available():  # the harness asks for cuda wherever it runs
            device = "cpu"
        model = load_pretrained(pretrained, getattr(torch, dtype), device or "cuda")
        # whole segments: the paper's mode hmt asks for memories with the first half of one before it reads it
        self.at_once = max(AT_ONCE // model.settings.segment_length, 1) * model.settings.segment_length
        super().__init__(
            model.causal_lm,
            backend="causal",
            tokenizer=load_tokenizer(pretrained),
            max_length=max_length or WITHOUT_END,
            **options,
        )

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request's continuation, and whether greedy decoding gives the same tokens.

        Args:
            requests: texts, token ids of the context, and token ids of the continuation.
            disable_tqdm: hide the progress bar.
            override_bs: requests per batch; None for the model's batch size.
        """
        size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else 8)
        order = sorted(range(len(requests)), key=lambda number: -sum(map(len, requests[number][1:])))
        answers: dict[int, tuple[float, bool]] = {}
        for at in tqdm(range(0, len(order), size), disable=disable_tqdm, desc="Reading"):
            numbers = order[at : at + size]
            for number, answer in zip(numbers, self.read([requests[one] for one in numbers]), strict=True):
                answers[number] = answer
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return [answers[number] for number in range(len(requests))]

    @torch.inference_mode()
    def read(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation in a batch, and whether greedy decoding gives it.

        Logits are computed for about 2,048 tokens of a row at a time, to save memory.

        Args:
            requests: texts, token ids of the context, and token ids of the continuation.
        """
        lengths = [len(context) + len(continuation) - 1 for _, context, continuation in requests]
        ids = torch.zeros(len(requests), max(lengths) + 1, dtype=torch.int64)
        wanted = torch.zeros(len(requests), max(lengths), dtype=torch.bool)
        for row, (_, context, continuation) in enumerate(requests):
            ids[row, : lengths[row] + 1] = torch.tensor([*context, *continuation])
            wanted[row, len(context) - 1 : lengths[row]] = True
        ids, wanted = ids.to(self.device), wanted.to(self.device)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(self.device)
        sums, greedy, cache = (
            torch.zeros(len(requests), dtype=torch.float64),
            torch.ones(len(requests), dtype=torch.bool),
            None,
        )
        for start in range(0, max(lengths), self.at_once):
            end = min(start + self.at_once, max(lengths))
            out = self.model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            scores, best = scored(out.logits, ids[:, start + 1 : end + 1])
            sums += (scores * wanted[:, start:end]).sum(dim=1).cpu()
            greedy &= (best | ~wanted[:, start:end]).all(dim=1).cpu()
        return list(zip(sums.tolist(), greedy.tolist(), strict=True))


def scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each label's log-probability (float64), and whether it is the most likely token; both `[rows, tokens]`.

    Args:
        logits: `[rows, tokens, vocabulary]`.
        labels: token ids, `[rows, tokens]` int64.
    """
    scores = logits.float().log_softmax(dim=-1).gather(-1, labels[..., None])[..., 0].double()
    return scores, logits.argmax(dim=-1) == labels


if __name__ == "__main__":
    setup_logging()
    parser = HarnessCLI()
    parser.execute(parser.parse_args())
