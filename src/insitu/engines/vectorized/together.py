"""A block's sum: updates added one by one, or all those that stand side by side with one product a tensor."""

from __future__ import annotations

from typing import Any

from insitu.core import tree
from insitu.core.descent import Descent, Job
from insitu.core.errors import UpdateError
from insitu.core.mean import Mean
from insitu.core.types import Answer, Failure, Report, Update
from insitu.engines.vectorized.lanes import Finished
from insitu.rounds.client import answer, failure
from insitu.rounds.fold import fold_in


def can_fold_together(plan: Any, finished: Finished) -> bool:
    """Whether clients tell nothing but the change of the model, and nothing is done to it on its way to the mean."""
    own, end = type(plan.algorithm), finished.end
    plain = own.report is Descent.report and own.close is Descent.close
    keeps_nothing = (
        not (end["buffers"] or end["personal"] or end["kept"])
        and finished.jobs[0].fixed["memory"] is None
        and not plan.algorithm.keeps_optimizer()
    )
    on_time = all(job.task.discount == 1 for job in finished.jobs)
    mean = type(plan.reduce) is Mean and not plan.stages and not plan.stops_early()
    return plain and keeps_nothing and on_time and mean


class Together:
    """The accumulator of a block and the reports of those in it."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.accumulator = plan.reduce.zero()
        self.reports: list[Report] = []

    def add(self, item: Answer) -> Failure | None:
        """One answer; a failure where it is refused."""
        try:
            self.accumulator = fold_in(self.plan, self.accumulator, item)
        except UpdateError as error:
            return failure(item.task, error)
        self.reports.append(item.report())
        return None

    def add_all(self, finished: Finished) -> list[Failure]:
        """The changes of clients side by side, which it may overwrite. Returns those that are not finite."""
        start, end, jobs = finished.message["shared"], finished.end["shared"], finished.jobs
        change = tree.map(lambda w, w0: w.sub_(w0), end, start)
        sums = {name: values.tolist() for name, values in finished.end["sums"].items()}
        metrics = [dict(zip(sums, values, strict=True)) for values in zip(*sums.values(), strict=True)]
        weights = [self.plan.algorithm.weigh(len(job.client.data)) for job in jobs]
        size = tree.nbytes(change) // len(jobs)
        # One look at their sum is a look at each: what is not finite in any of them is not finite in the sum.
        reduce = self.plan.reduce
        total = reduce.add_stacked(reduce.zero(), {"shared": change}, {"shared": weights})
        if tree.not_finite(total["value"]) is not None:
            return self._one_by_one(jobs, change, weights, metrics)
        self.accumulator = reduce.merge(self.accumulator, total)
        for job, own in zip(jobs, metrics, strict=True):
            self.reports.append(Report(job.task.client, job.task.index, own, size))
        return []

    def _one_by_one(
        self, jobs: list[Job], change: Any, weights: list[float], metrics: list[dict[str, float]]
    ) -> list[Failure]:
        """The usual way, which names the client and the tensor that are at fault."""
        failures: list[Failure] = []
        for k, job in enumerate(jobs):
            value = tree.map(lambda x, k=k: x[k], change)
            update = Update({"shared": value}, {"shared": weights[k]}, metrics[k])
            try:
                refused = self.add(answer(self.plan, job.task, update, None, None))
            except Exception as error:
                refused = failure(job.task, error)
            if refused is not None:
                failures.append(refused)
        return failures
