"""The daemon end to end: real agents, real models, content store and journal in memory."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from dimnode.domain.record import Attempt, Ballot
from dimnode.domain.task import CabinetQuery, TaskInput, TaskReport
from dimnode.domain.tensors import TensorValue, from_npy, to_npy, to_numpy
from dimnode.errors import AlreadyExists, FailedPrecondition, Fenced, InvalidArgument, ResourceExhausted, Unavailable
from dimnode.state.memory_journal import MemoryDisk
from p2p.ipfs.memory import MemoryExchange
from tests.support.daemon import SETTINGS, finish, order, running_daemon, with_agents
from tests.support.models import UNTRIED, WEIGHTS, hungry_onnx, linear_onnx, linear_pt2, slow_onnx

X = np.arange(12, dtype=np.float32).reshape(3, 4)


async def add(bench, path: Path, id: str = "m", form: str = ""):
    return await bench.daemon.add_model_file(path, id=id, licence="MIT", batch_axis=None, form=form)


async def test_a_task_runs_and_is_signed_recorded_and_chained(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        assert manifest.inputs[0].shape == ("N", 4)
        assert manifest.batched_outputs() == {"y", "class"}
        stages = [u.stage async for u in bench.daemon.run_task(order(manifest, manifest_cid, {"x": X}), "c")]
        assert stages == ["accepted", "fetching", "running", "finished"]
        first = await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}, task="u"))
        np.testing.assert_allclose(to_numpy(first.outputs["y"]), X @ WEIGHTS)
        assert first.status == "completed"
        assert first.rows == 3
        assert first.receipt is not None
        assert first.receipt.cost == 2.5
        assert set(first.receipt.inputs) == {"x"}
        entries = await bench.journal.load("job-1")
        bodies = [e.body() for e in entries]
        assert isinstance(bodies[1], Attempt)
        assert bodies[1].receipt is not None
        assert bodies[1].receipt.previous == entries[0].id
        assert bench.daemon.stats()["agents"]["warm_calls"] == 1
        assert next(m for m in bench.daemon.models() if m.id == "m").warm
        assert {"models", "load"} <= set(bench.changes)


async def test_pytorch_program_gives_the_same_as_onnx(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_pt2(tmp_path / "m.pt2"))
        assert manifest.format == "pt2"
        assert manifest.batched_inputs() == {"x"}
        assert await bench.daemon.prewarm(manifest.cid, manifest_cid, ())
        done = await finish(bench.daemon, order(manifest, manifest_cid, {"anything": X}))
        np.testing.assert_allclose(to_numpy(done.outputs["output_0"]), X @ WEIGHTS)


async def test_inputs_by_cid_rows_renames_and_outputs_by_cid(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home", settings=replace(SETTINGS, inline_bytes=16)) as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        cid = await bench.store.add_bytes(to_npy(X.astype(np.float64)))
        item = TaskInput(name="x", value=TensorValue(cid=cid), rows=(0, 2))
        done = await finish(bench.daemon, order(manifest, manifest_cid, inputs=None).__class__(
            **{**_plain(order(manifest, manifest_cid)), "inputs": (item,), "rename_outputs": {"y": "scores"}}))  # fmt: skip
        assert done.rows == 2
        assert set(done.outputs) == {"scores", "class"}
        by_cid = done.outputs["scores"] if done.outputs["scores"].cid else done.outputs["class"]
        assert by_cid.cid is not None
        assert done.receipt is not None
        assert by_cid.cid in done.receipt.outputs.values()
        assert from_npy(await bench.store.get_bytes(by_cid.cid)).shape[0] == 2
        assert done.receipt.inputs["x"] == f"{cid}[0:2]"


def _plain(task) -> dict:
    return {f: getattr(task, f) for f in task.__struct_fields__}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "missing"),
        ({"x": X, "z": X}, "no input 'z'"),
        ({"x": X[:, :3]}, "axis 1"),
        ({"x": X[0]}, "axes"),
        ({"x": np.array(["a"] * 4)[None]}, "must be float32"),
        ({"x": np.full((1, 4), 1e300)}, "too large"),
    ],
)
async def test_unfit_inputs_fail_for_good_with_a_reason(tmp_path: Path, inputs, words: str) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        done = await finish(bench.daemon, order(manifest, manifest_cid, inputs))
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.code == "INVALID_ARGUMENT"
        assert words in done.error.message
        assert not done.retryable


async def test_cabinets_feed_models_and_policies_hold(tmp_path: Path) -> None:
    csv = tmp_path / "d.csv"
    csv.write_text("a,b,c,d\n" + "\n".join(f"{i},{i}.5,1,0" for i in range(12)))
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        policy = {"outputs": "aggregates", "models": ["m"], "clients": ["me"]}
        info = await bench.daemon.add_cabinet("site", csv, policy)
        assert info.rows == 12
        query = CabinetQuery(name="site")
        good = await finish(bench.daemon, order(manifest, manifest_cid, cabinet=query, reduce="mean", principal="me"))
        assert good.error is None
        assert good.rows == 12
        data = np.loadtxt(csv, delimiter=",", skiprows=1)
        np.testing.assert_allclose(to_numpy(good.outputs["y"]), (data @ WEIGHTS).mean(axis=0))
        assert good.receipt is not None
        assert list(good.receipt.inputs) == ["cabinet:site"]
        votes = await finish(bench.daemon, order(manifest, manifest_cid, cabinet=query, reduce="votes", principal="me", task="v"))
        assert int(to_numpy(votes.outputs["counts"]).sum()) == 12
        for n, change in enumerate(({"reduce": "rows"}, {"principal": "other"})):
            asked = {"reduce": "mean", "principal": "me", **change}
            bad = await finish(bench.daemon, order(manifest, manifest_cid, cabinet=query, task=f"bad{n}", **asked))
            assert bad.error is not None
            assert bad.error.code == "PERMISSION_DENIED"
        gone = await finish(bench.daemon, order(manifest, manifest_cid, cabinet=CabinetQuery(name="nope"), task="g"))
        assert gone.error is not None
        assert gone.error.code == "NOT_FOUND"


async def test_timeout_kills_the_agent_and_the_next_task_runs(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, slow_onnx(tmp_path / "slow.onnx"), "slow", form=UNTRIED)
        fast, fast_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        assert await bench.daemon.add_model_file(tmp_path / "m.onnx", id="m", licence="", batch_axis=None)
        done = await finish(bench.daemon, order(manifest, manifest_cid, {"x": np.ones(1, np.float32)}, timeout=1.5))
        assert done.error is not None
        assert done.error.code == "DEADLINE_EXCEEDED"
        assert done.retryable
        assert (await finish(bench.daemon, order(fast, fast_cid, {"x": X}, task="next"))).status == "completed"
        assert bench.daemon.load().running == 0


async def started(updates) -> None:
    async for update in updates:
        if update.stage == "running":
            return


async def test_closing_leaves_the_task_running_and_cancel_task_cancels(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, slow_onnx(tmp_path / "slow.onnx"), form=UNTRIED)
        task = order(manifest, manifest_cid, {"x": np.ones(1, np.float32)})
        async with aclosing(bench.daemon.run_task(task, "c")) as updates:
            await started(updates)
        assert bench.daemon.load().running == 1
        async with aclosing(bench.daemon.run_task(task, "another")) as updates:
            await started(updates)
            assert await bench.daemon.cancel_task("job-1", "t", 1, task.ballot)
            rest = [u async for u in updates]
        assert rest[-1].entry is not None
        body = rest[-1].entry.body()
        assert isinstance(body, Attempt)
        assert body.status == "cancelled"
        assert not await bench.daemon.cancel_task("job-1", "t", 1, task.ballot)
        assert bench.daemon.stats()["counters"]["adopted"] == 1


async def test_a_result_that_nobody_fetched_is_kept_with_its_outputs_pinned(tmp_path: Path) -> None:
    disk = MemoryDisk()
    async with running_daemon(tmp_path / "home", disk=disk, settings=replace(SETTINGS, inline_bytes=16)) as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        async with aclosing(bench.daemon.run_task(order(manifest, manifest_cid, {"x": X}), "c")) as updates:
            await anext(updates)
        with trio.fail_after(30):
            await bench.daemon.wait_unfetched(0)
        (entry,) = bench.daemon.unfetched()
        body = entry.body()
        assert isinstance(body, Attempt)
        by_cid = [v.cid for v in body.outputs.values() if v.cid]
        assert by_cid
        assert {(await bench.store.pins())[cid] for cid in by_cid} == {"output of job-1"}
        assert bench.daemon.stats()["kept"] == 1
        report = await bench.daemon.attempts_of("job-1", Ballot(2, "new", "b"))
        assert report == TaskReport(finished=(entry,))
        with pytest.raises(Fenced):
            await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}))
    async with running_daemon(tmp_path / "home", disk=disk) as bench:
        assert bench.daemon.unfetched() == (entry,)
        bench.daemon.fetched([entry.id])
        assert bench.daemon.stats()["kept"] == 0


async def test_the_same_attempt_runs_once_also_after_a_restart(tmp_path: Path) -> None:
    disk, results = MemoryDisk(), []
    async with running_daemon(tmp_path / "home", disk=disk) as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        one = order(manifest, manifest_cid, {"x": X})

        async def again() -> None:
            results.append(await finish(bench.daemon, one))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
            nursery.start_soon(again)
        assert results[0] == results[1]
        assert bench.daemon.stats()["agents"]["cold_calls"] == 1
    async with running_daemon(tmp_path / "home", disk=disk) as bench:
        assert await finish(bench.daemon, one) == results[0]
        assert bench.daemon.stats()["counters"]["accepted"] == 0
        assert [m.id for m in bench.daemon.models() if m.format == "onnx"] == ["m"]


async def test_lower_ballots_are_fenced(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        await bench.journal.raise_ballot("job-1", Ballot(2, "new", "b"))
        with pytest.raises(Fenced, match="new"):
            await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}))


async def test_full_queue_refuses_and_stop_hands_back(tmp_path: Path) -> None:
    settings = replace(SETTINGS, slots=1, queue_capacity=1)
    results: list[Attempt] = []
    async with trio.open_nursery() as outer:  # noqa: SIM117 - the daemon stops first
        async with running_daemon(tmp_path / "home", settings=settings) as bench:
            manifest, manifest_cid = await add(bench, slow_onnx(tmp_path / "slow.onnx"), form=UNTRIED)

            def task(n: int):
                return order(manifest, manifest_cid, {"x": np.ones(1, np.float32)}, task=f"t{n}")

            async def run(n: int, task_status=trio.TASK_STATUS_IGNORED) -> None:
                updates = bench.daemon.run_task(task(n), "c")
                await updates.__anext__()
                task_status.started()
                results.extend([u.entry.body() async for u in updates if u.entry])

            await outer.start(run, 0)
            await outer.start(run, 1)
            with pytest.raises(ResourceExhausted) as refused:
                await run(2)
            assert refused.value.retry_after is not None
            assert bench.daemon.load().queued == 1
    assert [r.error and r.error.code for r in results] == ["UNAVAILABLE", "UNAVAILABLE"]
    assert all(r.retryable for r in results)


async def test_memory_hunger_is_an_error_and_the_agent_pool_goes_on(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home", settings=with_agents(memory_base=600 << 20)) as bench:
        manifest, manifest_cid = await add(bench, hungry_onnx(tmp_path / "h.onnx"))
        bad = await finish(bench.daemon, order(manifest, manifest_cid, {"n": np.array([1 << 30])}))
        assert bad.error is not None
        assert bad.status == "failed"
        good = await finish(bench.daemon, order(manifest, manifest_cid, {"n": np.array([3])}, task="ok"))
        assert good.outputs["y"].shape == (3,)


async def test_models_come_from_other_nodes_and_bad_ones_are_refused(tmp_path: Path) -> None:
    exchange = MemoryExchange()
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(tmp_path / "b", name="b", exchange=exchange) as b,
    ):
        manifest, manifest_cid = await add(a, linear_onnx(tmp_path / "m.onnx"))
        done = await finish(b.daemon, order(manifest, manifest_cid, {"x": X}, providers=("a",)))
        assert done.status == "completed"
        assert manifest.cid in [m.cid for m in b.daemon.models()]
        cid = (await a.store.add_file(linear_onnx(tmp_path / "n.onnx", batch=1)))[0]
        added, _ = await b.daemon.add_model_cid(cid, id="n", format="onnx", licence="", batch_axis=0, providers=("a",))
        assert added.batched_inputs() == {"x"}
        junk = tmp_path / "junk.onnx"
        junk.write_bytes(b"no model at all")
        with pytest.raises(InvalidArgument, match="not a model"):
            await add(b, junk)
        with pytest.raises(AlreadyExists):
            await add(b, slow_onnx(tmp_path / "s.onnx"), "n", form=UNTRIED)
        b.daemon.close_intake()
        with pytest.raises(Unavailable):
            await finish(b.daemon, order(manifest, manifest_cid, {"x": X}, task="late"))


async def test_built_in_steps_are_listed_and_run(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        ref = next(m for m in bench.daemon.models() if m.id == "dim/ctc@1")
        probabilities = np.zeros((1, 2, 3), np.float32)
        probabilities[0, 0, 1] = probabilities[0, 1, 0] = 1
        inputs = {"probabilities": probabilities, "characters": np.array(["a"], dtype=object)}
        done = await finish(bench.daemon, order(ref, ref.manifest_cid, inputs))
        assert done.error is None
        assert to_numpy(done.outputs["texts"]).tolist() == ["a"]


async def test_many_tasks_at_once_all_finish_and_chain_once(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home", settings=replace(SETTINGS, queue_capacity=100)) as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"))
        results: list[Attempt] = []

        async def one(n: int) -> None:
            priority = ("low", "normal", "high", "critical")[n % 4]
            results.append(await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}, task=f"t{n}", priority=priority)))

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(one, n)
        assert [r.status for r in results] == ["completed"] * 40
        previous = [r.receipt.previous for r in results if r.receipt is not None]
        assert len(set(previous)) == 40
        load = bench.daemon.load()
        assert (load.running, load.queued) == (0, 0)


async def test_a_model_that_is_too_big_is_refused_before_it_is_loaded_or_fetched(tmp_path: Path) -> None:
    path, hub = linear_onnx(tmp_path / "m.onnx"), MemoryExchange()
    small = replace(SETTINGS, model_bytes=path.stat().st_size - 1)
    async with (
        running_daemon(tmp_path / "big", name="big", exchange=hub) as big,
        running_daemon(tmp_path / "small", name="small", exchange=hub, settings=small) as bench,
    ):
        manifest, manifest_cid = await add(big, path)
        with pytest.raises(FailedPrecondition, match="takes at most"):
            await add(bench, path)
        done = await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}, providers=("big",)))
    assert done.error is not None
    assert "takes at most" in done.error.message
    assert done.retryable


async def test_one_artifact_may_have_several_ids_and_an_id_that_the_caller_refuses_is_never_told(tmp_path: Path) -> None:
    def refuse(id: str, cid: str) -> None:
        raise AlreadyExists(f"{id} is taken")

    path = linear_onnx(tmp_path / "m.onnx")
    async with running_daemon(tmp_path / "home") as bench:
        first, _ = await add(bench, path, "one")
        second, _ = await add(bench, path, "two")
        assert first.cid == second.cid
        with pytest.raises(AlreadyExists):
            await bench.daemon.add_model_file(path, id="three", licence="", batch_axis=None, check=refuse)
        ids = {m.id for m in bench.daemon.models()}
        assert {"one", "two"} <= ids
        assert "three" not in ids
        assert {m.warm for m in bench.daemon.models() if m.cid == first.cid} == {False}
    async with running_daemon(tmp_path / "home") as bench:
        assert ids == {m.id for m in bench.daemon.models()}
