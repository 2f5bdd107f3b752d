"""A rank that is killed in the middle ends the others with an error that names it, and leaves no file."""

import json
import re
import signal

import pytest

from tests.distributed.conftest import CASES


def ends(start, folder, plan, ranks, victim, patience):
    out = folder / "heart.png"
    given = {"plan": plan, "victim": victim, "out": str(out), "patience": patience}
    processes = start(ranks, CASES, "killed", json.dumps(given))
    assert processes[victim].wait(timeout=60) == -signal.SIGKILL
    said = [process.communicate(timeout=30)[1] for process in processes]  # within 30 s of the kill
    others = [rank for rank in range(ranks) if rank != victim]
    assert [processes[rank].returncode for rank in others] == [1] * len(others)
    for rank in others:
        told = rf"(?m)^ideoflow\.distributed\.heartbeats\.RankLost: rank {victim}\b.* is gone"
        assert re.search(told, said[rank]), said[rank]  # torch may go on about the connection after it
    assert list(folder.iterdir()) == []


def test_the_others_end_and_name_it(start, tmp_path):
    ends(start, tmp_path, dict(guidance=2, context=2), 4, 3, patience=4)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1, 2, 3])
@pytest.mark.parametrize("plan", [dict(guidance=2, context=2), dict(context=2, tensor=2), dict(context=2, data=2)])
def test_whichever_it_is_under_any_plan(start, tmp_path, plan, victim):
    ends(start, tmp_path, plan, 4, victim, patience=12)
