"""A forward loop written by hand, with nothing of advisor in it: what benchmarks/overhead.py is held against.

    python benchmarks/bare_loop.py CONFIG_JSON DEVICE ROUNDS BATCH LENGTH [LENGTH …]

Prints one JSON list: seconds per round. The default of transformers: the checkpoint's dtype, default attention, left
padding, last logits.
"""

import json
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

path, device, rounds, size, *texts = sys.argv[1:]
lengths = [int(text) for text in texts]
torch.set_num_threads(1)
torch.manual_seed(0)
config = AutoConfig.from_pretrained(path)
with torch.device(device):
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
generator = torch.Generator().manual_seed(0)
sequences = [torch.randint(16, config.vocab_size, (n,), generator=generator) for n in lengths]

batches = []
for start in range(0, len(sequences), int(size)):
    rows = sequences[start : start + int(size)]
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    batches.append((ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)))


@torch.inference_mode()
def one_round() -> float:
    """Run all batches and return the seconds from tokens on the host to logits ready."""
    spent = 0.0
    for ids, mask, positions in batches:
        began = time.perf_counter()
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        if device != "cpu":
            torch.cuda.synchronize()
        spent += time.perf_counter() - began
        del logits
    return spent


for _ in range(3):
    one_round()
print(json.dumps([one_round() for _ in range(int(rounds))]))
