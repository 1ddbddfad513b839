"""The files that ``insitu new`` writes: a small project that runs as it is and is meant to be changed."""

from __future__ import annotations

CONFIG = """\
# What is learnt, from whose data, and how. `insitu run` executes it; every key is explained by
# the page "Command line" of insitu's documentation.

[run]
rounds = 20
seed = 0
store = "runs/insitu.db"      # relative to this file

[data]
source = "data.py:load"       # a function in data.py; or a data set by name, such as "digits"
partition = "natural"         # one client a hospital, as the keys say
holdout = 0.2                 # what each client keeps to measure the model by
test = 0.2                    # a central test set

{learner}
[algorithm]
name = "fedavg"               # or "fedprox", "scaffold", "fedsgd", "gossip"
lr = 0.1
epochs = 1
batch_size = 16

[cohort]
name = "uniform"              # half of the hospitals in each round
fraction = 0.5
"""

TORCH = """\
[learner]
name = "torch"
module = "model.py:Net"       # a class in model.py, called with these arguments
arguments = { hidden = 32 }
loss = "cross_entropy"
"""

LOGISTIC = """\
[learner]
name = "logistic"             # softmax regression in NumPy; with torch installed: name = "torch"
"""

MODEL = '''\
"""The model: any torch.nn.Module that takes x [batch, …] and gives [batch, classes]."""

from torch import Tensor, nn


class Net(nn.Module):
    """A perceptron with one hidden layer."""

    def __init__(self, features: int = 6, hidden: int = 32, classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
'''

DATA = '''\
"""The data. Replace what is in `load` by reading your own files; its arguments can be set in insitu.toml."""

import numpy as np

from insitu.data import DataSet


def load(patients: int = 2000, hospitals: int = 12, seed: int = 0) -> DataSet:
    """Made-up patients: six measures, ill or not. Hospitals differ in size, in how ill their patients are, in devices.

    Your own function may also return (x, y), with a partition in insitu.toml, or insitu.data.Clients.
    """
    random = np.random.default_rng(seed)
    sizes = random.dirichlet(np.full(hospitals, 2.0))
    hospital = random.choice(hospitals, size=patients, p=sizes)
    severity = random.normal(0.0, 0.8, hospitals)[hospital]
    device = random.normal(0.0, 0.3, (hospitals, 6))[hospital]
    health = random.normal(size=(patients, 6))
    risk = health @ np.array([1.2, -0.8, 0.6, 0.0, 0.4, -0.3]) + health[:, 0] * health[:, 1] + severity
    ill = (risk + random.normal(0.0, 0.5, patients) > 0).astype(np.int64)
    names = np.array([f"hospital {number + 1:02}" for number in range(hospitals)])
    return DataSet("patients", health + device, ill, keys=names[hospital], classes=("healthy", "ill"))
'''

README = """\
# {name}

One model, trained on data that stays where it is, with insitu.

    insitu run                      # trains by insitu.toml
    insitu runs                     # what has been run
    insitu show                     # the newest run; --clients for each hospital, --plot rounds.png for a picture
    insitu partition insitu.toml    # who has which data
    insitu run --set algorithm.name=fedprox --set algorithm.mu=0.1
    insitu run --resume last        # goes on with a run that was stopped

- `insitu.toml` says what is learnt, from whose data, and how.
{model}- `data.py` makes the data: replace what is in `load` by reading your own files.
- `runs/` is made by the first run: metrics, checkpoints and the record of every run.
"""

OF_MODEL = "- `model.py` holds the model.\n"


def files(name: str, torch: bool) -> dict[str, str]:
    """The project's files: their names and texts."""
    learner = TORCH if torch else LOGISTIC
    texts = {
        "insitu.toml": CONFIG.replace("{learner}", learner),
        "data.py": DATA,
        "README.md": README.replace("{name}", name).replace("{model}", OF_MODEL if torch else ""),
    }
    return {**texts, "model.py": MODEL} if torch else texts
