"""Models to be scripted, good and hostile; run by `tests.support.torchscript` in a process of its own: FOLDER NAME..."""

import sys
import warnings

import torch


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(4, 2, bias=False)
        self.l.weight.data = torch.tensor([[1.0, 0, 1, 2], [0, 1, 1, -1]])

    def forward(self, x):
        y = self.l(x)
        return y, y.argmax(-1)


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.total.add_(x.sum())
        return {"calls": torch.tensor(self.calls), "total": self.total + 0.0}


class Number(torch.nn.Module):
    def forward(self, x, times: int, shift: float = 0.5):
        out: list[torch.Tensor] = []
        for i in range(times):
            if i % 2 == 0:
                out.append(x + i)
            else:
                out.append(x - i)
        return torch.stack(out) + shift


class Reads(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            for _ in range(2):
                x = x + torch.from_file("MARKER", True, 4)
        return x


class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Reads()

    def forward(self, x):
        return x

    @torch.jit.export
    def other(self, x):
        return self.inner(x)


class Saves(torch.nn.Module):
    def forward(self, x):
        torch.ops.aten.save(x, "MARKER")
        return x


class Forks(torch.nn.Module):
    def forward(self, x):
        return torch.jit.wait(torch.jit.fork(torch.relu, x))


class Raw(torch.nn.Module):
    def forward(self, x):
        return x.resize_(1 << 20)


class Loads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.zeros(1)
        self.training = False

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = torch.from_file("MARKER", True, 4)
        self.training = state[1]


warnings.simplefilter("ignore")
for name in sys.argv[2:]:
    torch.jit.script(globals()[name]().eval()).save(f"{sys.argv[1]}/{name}.pt")
