"""Trains a small tower: a SigLIP-style ViT with Idefics3's projector, into SmolLM2-135M's embedding space.

    $(deploy/tower/environment training) deploy/tower/train.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out tower.gguf [--steps 2200]

The language model takes no part but for its table of embeddings. The tower is to give, for each token of a picture's
caption, the vector that the model would have looked up for it: token i of a picture is compared with the embeddings of
all tokens that captions are made of, by distance. The model then reads the caption as if it stood in the prompt.
Every 200 steps it writes --out and checkpoints beside it, from which it goes on.
"""
import argparse
import copy
import math
import os
import pathlib
import queue
import random
import sys
import tempfile
import time

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import multiprocessing, nn

import mmproj
import render

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'oracle'))
from gguf_file import GgufFile

HELD_OUT = 300
POOL = 12288  # pictures at hand, of which the oldest are replaced all the time
FIRST = 1024  # pictures to begin with
USES = 4  # of each picture, while drawing keeps up
REPORT_STEPS = 200
RANKS = 4  # processes of one thread, which add up their gradients: threads of one process wait for each other spinning
NEARNESS = 0.3  # squared distance that is worth a factor of e: the nearest two embeddings are 1.3 apart


class Captions:
    """The tokens that captions are made of, their ids and embeddings."""

    def __init__(self, model):
        file = GgufFile(model)
        ids = {token: i for i, token in enumerate(file.metadata['tokenizer.ggml.tokens'])}
        rng, tokens = random.Random(0), set()
        for _ in range(20000):
            tokens.update(render.draw_scene(rng).caption())
        self.tokens = sorted(tokens)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.embeddings = torch.from_numpy(file.tensor('token_embd.weight')[[ids[t] for t in self.tokens]].copy())

    def encode(self, scene):
        """The tokens, then the number of each attribute's value, or -100."""
        tokens, has = [self.index[token] for token in scene.caption()], scene.attributes()
        return tokens + [values.index(has[kind]) if kind in has else -100 for kind, values in render.ATTRIBUTES.items()]


def make_pictures(seed, batch, captions, out):
    """A process of its own: pictures and captions without end."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    while True:
        scenes = [render.draw_scene(rng) for _ in range(batch)]
        pictures = np.stack([render.as_tower_sees(render.render(rng, scene)) for scene in scenes])
        out.put((torch.from_numpy(pictures), torch.tensor([captions.encode(scene) for scene in scenes])))


class Pool:
    """Pictures to train on, drawn by a process of their own."""

    def __init__(self, captions):
        self.queue = multiprocessing.Queue(8)
        seed = random.SystemRandom().getrandbits(32)
        print('seed of the pictures', seed, flush=True)
        multiprocessing.Process(target=make_pictures, args=(seed, 64, captions, self.queue), daemon=True).start()
        self.pictures = torch.empty(POOL, render.SIDE, render.SIDE, 3, dtype=torch.uint8)
        self.labels = torch.empty(POOL, render.TOKENS + len(render.ATTRIBUTES), dtype=torch.long)
        self.drawn = self.used = 0

    def take_new(self):
        try:
            pictures, labels = self.queue.get(block=self.drawn < FIRST)
        except queue.Empty:
            return False
        at = self.drawn % POOL
        self.pictures[at:at + len(labels)], self.labels[at:at + len(labels)] = pictures, labels
        self.drawn += len(labels)
        return True

    def batch(self, size):
        self.used += size
        while self.drawn < max(FIRST, self.used / USES) and self.take_new():
            pass
        chosen = torch.randint(min(self.drawn, POOL), (size,))
        return self.pictures[chosen], self.labels[chosen]


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.ln1, self.ln2 = (nn.LayerNorm(c.hidden, eps=c.eps) for _ in range(2))
        self.attn_q, self.attn_k, self.attn_v, self.attn_out = (nn.Linear(c.hidden, c.hidden) for _ in range(4))
        self.ffn_up, self.ffn_down = nn.Linear(c.hidden, c.ffn), nn.Linear(c.ffn, c.hidden)

    def forward(self, x):
        y = self.ln1(x)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in (self.attn_q, self.attn_k, self.attn_v))
        # Written out: in this size the fused one is three times slower backwards.
        attention = (q * q.shape[-1]**-0.5 @ k.transpose(2, 3)).softmax(-1)
        x = x + self.attn_out((attention @ v).transpose(1, 2).flatten(2))
        return x + self.ffn_down(F.gelu(self.ffn_up(self.ln2(x)), approximate='tanh'))


def waves(side, size):
    """Positions [side * side, size]: near ones are alike."""
    angles = torch.arange(side)[:, None] / 20 ** (torch.arange(size // 4) / (size // 4))
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).flatten(0, 1).clone()


def patches(pictures, c):
    """uint8 [batch, side, side, 3] to [batch, patches, 3 * patch * patch] from -1 to 1."""
    grid = c.side // c.patch
    x = pictures.view(-1, grid, c.patch, grid, c.patch, 3).permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
    return x.float() / 127.5 - 1


def whiten(linear, c):
    """Principal components of drawn patches, each as loud as the others: else edges are lost beside plain areas."""
    rng = random.Random(0)
    drawn = [render.as_tower_sees(render.render(rng, render.draw_scene(rng))) for _ in range(300)]
    x = patches(torch.from_numpy(np.stack(drawn)), c).flatten(0, 1)
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    weight = (vectors[:, -c.hidden:] / (values[-c.hidden:] + 0.01).sqrt()).T
    linear.weight.data.copy_(weight)
    linear.bias.data.copy_(-weight @ mean)


class Tower(nn.Module):
    """Parameters have the names of an mmproj file."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.patch_embd = nn.Linear(3 * c.patch**2, c.hidden)
        self.position_embd = nn.Parameter(waves(c.side // c.patch, c.hidden))
        self.blk = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.post_ln = nn.LayerNorm(c.hidden, eps=c.eps)
        self.fc = nn.Linear(c.hidden * c.merge**2, c.out, bias=False)
        whiten(self.patch_embd, c)
        for layer in self.blk:
            layer.attn_k.weight.data.copy_(layer.attn_q.weight.data)  # each looks at its like and its neighbours first
            for last in (layer.attn_out, layer.ffn_down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * c.layers))
        nn.init.normal_(self.fc.weight, std=0.002)

    def forward(self, pictures):
        """uint8 [batch, side, side, 3] to [batch, tokens, out], and for the guide [batch, hidden]."""
        c, grid = self.c, self.c.side // self.c.patch
        x = self.patch_embd(patches(pictures, c).to(self.fc.weight.dtype)) + self.position_embd
        for layer in self.blk[:-1]:
            x = layer(x)
        pooled = x.mean(1)
        x = self.blk[-1](x)
        x = self.post_ln(x).view(-1, grid // c.merge, c.merge, grid // c.merge, c.merge, c.hidden)
        return self.fc(x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)), pooled


class Guide(nn.Module):
    """Tells the attributes from the mean of all patches: what is learnt for that, the captions need too, and it is
    learnt much sooner. In training only."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, len(values)) for values in render.ATTRIBUTES.values())

    def loss(self, pooled, labels):
        x = self.norm(pooled)
        losses = [F.cross_entropy(head(x).float(), of.contiguous(), ignore_index=-100, reduction='sum') / len(x)
                  for head, of in zip(self.heads, labels.T)]
        return sum(losses)


def squared_distances(vectors, embeddings):
    return (vectors**2).sum(-1, keepdim=True) - 2 * vectors @ embeddings.T + (embeddings**2).sum(-1)


def loss_of(vectors, labels, embeddings, done):
    """First to tell tokens apart, then to give their very vectors too."""
    distances = squared_distances(vectors.float(), embeddings)
    weight = 0.05 if done < 1 / 6 else 0.3
    guessed = F.cross_entropy(-distances.flatten(0, 1) / NEARNESS, labels.flatten())
    return guessed + weight * distances.gather(-1, labels[..., None]).mean()


class Judge:
    """Held-out pictures: which captions are right, by the nearest embeddings, and how far off these are."""

    def __init__(self, captions):
        scenes = [render.held_out(i) for i in range(HELD_OUT)]
        self.kinds = [scene.kind for scene, _ in scenes]
        self.pictures = torch.from_numpy(np.stack([render.as_tower_sees(picture) for _, picture in scenes]))
        self.labels = torch.tensor([captions.encode(scene)[:render.TOKENS] for scene, _ in scenes])

    @torch.no_grad()
    def report(self, tower, embeddings):
        distances = torch.cat([squared_distances(tower(p)[0].float(), embeddings) for p in self.pictures.split(100)])
        right = distances.argmin(-1) == self.labels
        off = distances.gather(-1, self.labels[..., None]).mean().sqrt()
        parts = [f'off {off:.2f}', f'tokens {right.float().mean():.4f}']
        for kind in ('shapes', 'digit', 'word'):
            of_kind = right[[k == kind for k in self.kinds]].float()
            slots = of_kind.mean(0)
            captions = of_kind.all(-1).float().mean()
            parts.append(f'{kind} {captions:.3f} ' + '/'.join(f'{s:.2f}' for s in slots if s < 1))
        return '  '.join(parts)


def take_step(run, masters, optimisers, pool, args, embeddings, done):
    """In bfloat16, from and to the float32 masters. The loss of this rank's part."""
    with torch.no_grad():
        for p, master in zip(run.parameters(), masters):
            p.copy_(master)
    pictures, labels = pool.batch(args.batch // RANKS)
    vectors, pooled = run[0](pictures)
    tokens, attributes = labels.split([render.TOKENS, labels.shape[1] - render.TOKENS], 1)
    guidance = (0.2 if done < 2 / 3 else 0.05) * run[1].loss(pooled, attributes)
    loss = loss_of(vectors, tokens, embeddings, done) + guidance
    run.zero_grad()
    loss.backward()
    together = torch.cat([p.grad.flatten() for p in run.parameters()]).float()
    torch.distributed.all_reduce(together)
    together /= max(RANKS, together.norm().item())  # the mean, of a length of at most 1
    for part, master in zip(together.split([m.numel() for m in masters]), masters):
        master.grad = part.view_as(master)
    for optimiser in optimisers:
        optimiser.step()
    share_inner(masters)
    return loss.item()


def is_inner(name, parameter):
    return '.blk.' in name and parameter.dim() == 2


def share_inner(masters):
    """Each rank took the costly steps for some of the matrices alone."""
    rank = torch.distributed.get_rank()
    inner = [m for m in masters if m.rank is not None]
    together = torch.cat([m.detach().flatten() if m.rank == rank else torch.zeros(m.numel()) for m in inner])
    torch.distributed.all_reduce(together)
    for part, master in zip(together.split([m.numel() for m in inner]), inner):
        master.data.copy_(part.view_as(master))


class Checkpoint:
    """Everything that a run goes on from."""

    def __init__(self, path):
        self.path, self.spent, self.step = pathlib.Path(path), 0.0, 0

    def load(self, masters, optimisers):
        if not self.path.exists():
            return
        state = torch.load(self.path)
        self.spent, self.step = state['spent'], state['step']
        for optimiser, value in zip(optimisers, state['optimisers']):
            optimiser.load_state_dict(value)
        for master, value in zip(masters, state['masters']):
            master.data.copy_(value)

    def save(self, masters, optimisers):
        new = self.path.with_name(self.path.name + '.new')
        torch.save({'spent': self.spent, 'step': self.step, 'optimisers': [o.state_dict() for o in optimisers],
                    'masters': masters}, new)
        os.replace(new, self.path)


def optimisers_of(tower, masters, rate):
    count = 0
    for (name, parameter), master in zip(tower.named_parameters(), masters):
        master.rank, count = (count % RANKS, count + 1) if is_inner(name, parameter) else (None, count)
    mine = [m for m in masters if m.rank == torch.distributed.get_rank()]
    others = [m for m in masters if m.rank is None]
    return [torch.optim.Muon(mine, lr=rate, weight_decay=0.05, adjust_lr_fn='match_rms_adamw'),
            torch.optim.AdamW(others, lr=rate, weight_decay=0, betas=(0.9, 0.98))]


def train(rank, args, captions, meeting):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=RANKS)
    shape = mmproj.Shape(out=captions.embeddings.shape[1])
    tower = nn.ModuleList([Tower(shape), Guide(shape.hidden)])
    torch.manual_seed(rank + 1)
    masters = [p.detach().clone().requires_grad_() for p in tower.parameters()]
    optimisers = optimisers_of(tower, masters, args.rate)
    at = Checkpoint(f'{args.out}.checkpoint-{rank}')
    at.load(masters, optimisers)
    judge = Judge(captions) if rank == 0 else None
    pool, run = Pool(captions), copy.deepcopy(tower).to(torch.bfloat16)
    loss = 0.0
    while at.step < args.steps:
        done = at.step / args.steps
        rate = args.rate * min(1, (at.step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group['lr'] = rate
        begin = time.process_time()
        loss += take_step(run, masters, optimisers, pool, args, captions.embeddings, done) / REPORT_STEPS
        at.step, at.spent = at.step + 1, at.spent + time.process_time() - begin
        if at.step % REPORT_STEPS == 0:
            at.save(masters, optimisers)
        if at.step % REPORT_STEPS == 0 and rank == 0:
            with torch.no_grad():
                for p, master in zip(tower.parameters(), masters):
                    p.copy_(master)
            print(f'step {at.step}  {at.spent / 60:.1f} min a core  drawn {RANKS * pool.drawn}  loss {loss:.3f}  '
                  f'{judge.report(tower[0], captions.embeddings)}', flush=True)
            mmproj.write(args.out, shape, tower[0].state_dict())
        loss *= at.step % REPORT_STEPS != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--steps', type=int, default=2200)
    parser.add_argument('--batch', type=int, default=96)
    parser.add_argument('--rate', type=float, default=2e-3)
    args = parser.parse_args()
    captions = Captions(args.model)
    with tempfile.TemporaryDirectory() as folder:
        workers = [multiprocessing.Process(target=train, args=(rank, args, captions, f'{folder}/meeting'))
                   for rank in range(RANKS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    sys.exit(any(worker.exitcode for worker in workers))


if __name__ == '__main__':
    main()
