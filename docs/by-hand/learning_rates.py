"""S23: the loss over the steps of gradient descent, for rates around the largest that converges."""
import matplotlib.pyplot as plt
import numpy as np

import fastbp as fb

rng = np.random.default_rng(0)
x = rng.normal(size=(100, 2)) * [1.0, 0.4]
y = x @ [[1.0], [-2.0]] + 0.3 * rng.normal(size=(100, 1))
limit = 2 / np.linalg.eigvalsh(2 * x.T @ x / len(x)).max()

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for factor, what in ((0.01, "crawls"), (0.1, "learns"), (0.5, "learns faster"), (0.99, "swings"), (1.04, "diverges")):
    model = fb.Sequential(fb.Linear(2, 1, bias=False, init="zeros"), dtype="float64")
    history = model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr=factor * limit), epochs=60, batch_size=len(x))
    axes.semilogy(history.history["loss"], label=f"{factor:g} of the limit: {what}")
axes.set(xlabel="step", ylabel="mean squared error", ylim=(0.05, 20))
axes.legend(frameon=False)
plt.show()
