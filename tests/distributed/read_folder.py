"""Run a converted folder with transformers alone, without hmt_ds: ``python read_folder.py FOLDER IDS RESULT``.

IDS and RESULT are safetensors: ``input_ids``, ``labels``; ``logits``, ``last``, ``loss``, ``generated``,
``greedy`` (the tokens of whole passes), ``weights``.
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder, ids, result = sys.argv[1:]
given = load_file(ids)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    whole = model(given["input_ids"], labels=given["labels"])
    last = model(given["input_ids"], logits_to_keep=5).logits
    greedy = given["input_ids"]
    for _ in range(40):
        greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(dim=-1)], dim=1)
generated = model.generate(given["input_ids"], max_new_tokens=40)
found = {"logits": whole.logits, "loss": whole.loss[None], "last": last, "generated": generated, "greedy": greedy}
save_file({name: tensor.contiguous() for name, tensor in found.items()}, result)
print("classes", type(model).__module__, "hmt_ds" in sys.modules, "deepspeed" in sys.modules)
