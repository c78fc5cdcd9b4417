"""Curves of runs of every kind of policy, a picture for each algorithm."""

from pathlib import Path


def draw_curves(folder: Path, runs: dict[str, dict[str, Path]], algorithms: list[str]) -> None:
    """Draw sampled success of the training episodes by iteration, a curve for each policy."""
    from vla.evaluation.plots import plot_success
    from vla.statistics import SuccessRate
    from vla.training.metrics import read_metrics

    for algorithm in algorithms:
        curves: dict[str, list[tuple[float, SuccessRate]]] = {}
        for policy, run in ((p, folders[algorithm]) for p, folders in runs.items()):
            if (run / "metrics.jsonl").exists():
                points = [r for r in read_metrics(run) if r["stage"] == "rl" and "success" in r]
                sizes = [int(r["num_episodes"]) for r in points]
                curves[policy] = [
                    (float(r["step"]), SuccessRate(round(r["success"] * n), n, None))
                    for r, n in zip(points, sizes)
                ]
        nonempty = {policy: curve for policy, curve in curves.items() if curve}
        if nonempty:
            title = f"{algorithm}: sampled training episodes"
            plot_success(folder / f"{algorithm}.png", nonempty, title, "RL iteration", target=None)
