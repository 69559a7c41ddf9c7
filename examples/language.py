"""Train a GPT with GR-KANs in place of MLPs, on the text of Python's own standard library."""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flashkat

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


class Block(nn.Module):
    """Causal attention and a GR-KAN, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grkan = flashkat.GRKAN(width, 4 * width, start="gelu")

    def forward(self, x: Tensor) -> Tensor:
        """Map features (batch, length, width) to the same shape."""
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.grkan(self.norm2(x))


class GPT(nn.Module):
    """A language model over :data:`CHARACTERS`."""

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.tokens, self.positions = nn.Embedding(len(CHARACTERS), width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(CHARACTERS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to logits (batch, length, characters)."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, start: str, count: int) -> str:
        """Continue a text by so many characters."""
        text = [CHARACTERS.index(character) for character in start]
        for _ in range(count):
            logits = self(torch.tensor([text[-self.length :]], device=self.head.weight.device))[0, -1]
            text.append(int(torch.multinomial((logits / 0.7).softmax(-1), 1)))
        return "".join(CHARACTERS[token] for token in text)


def standard_library(most: int) -> Tensor:
    """Return the first so many characters of Python's library as tokens, without those that are not ASCII."""
    index = {character: number for number, character in enumerate(CHARACTERS)}
    tokens: list[int] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tokens += [index[character] for character in path.read_text("utf-8") if character in index]
        if len(tokens) >= most:
            break
    return torch.tensor(tokens[:most])


def batch(text: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Return random pieces of a text, and the same one character on."""
    starts = torch.randint(len(text) - length, (count,))
    pieces = text[starts[:, None] + torch.arange(length + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def main(argv: list[str] | None = None) -> float:
    """Train, print a text of the model's, and return the bits per character of unseen text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128, help="channels")
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--length", type=int, default=128, help="characters that the model sees")
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--characters", type=int, default=2_000_000, help="of the text; a tenth is held out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    text = standard_library(args.characters)
    train, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    model = GPT(args.width, args.depth, heads=4, length=args.length).to(args.device)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(train):,} characters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=args.steps)

    def loss_of(source: Tensor) -> Tensor:
        tokens, following = (each.to(args.device) for each in batch(source, 16, args.length))
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    for step in range(1, args.steps + 1):
        loss = loss_of(train)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 8) == 0:
            print(f"step {step:5}  {loss.item() / math.log(2):.2f} bits per character")
    with torch.no_grad():
        bits = sum(loss_of(held_out).item() for _ in range(8)) / 8 / math.log(2)
    print(f"unseen text  {bits:.2f} bits per character\n{'-' * 40}\n{model.write('def ', 300)}")
    return bits


if __name__ == "__main__":
    main()
