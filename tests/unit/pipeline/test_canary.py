"""A ramp against replicas in memory; real servers are in tests/integration/test_canary.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from canary_fleet import MODEL, Behaviour, Fleet, Server, question
from hypothesis import given
from hypothesis import strategies as st
from synthetic import memory_store
from tiny_models import register

from pipeline import aliases, registry
from pipeline.aliases import CHAMPION, AliasState, Canary
from pipeline.artifacts import CanaryConfig, CanaryStep, utc_now
from pipeline.canary import Stage, climb, resumed, stages
from pipeline.canary_step import Ramp
from pipeline.errors import CanaryHeld, Conflict, DeployFailed
from pipeline.progress import Progress
from pipeline.proof import Question
from pipeline.replay import Replay, Role
from pipeline.store import Store

QUESTIONS = [question(number) for number in range(40)]
QUICK = CanaryConfig(steps=(0.05, 0.5), minimum_requests=60, step_s=0, hold_s=30)
GOOD, SLOW = Behaviour(), Behaviour(seconds=0.2)
CRASHING, WRONG = Behaviour(fails=True), Behaviour(turned=1)


@dataclass
class Scene:
    """A champion, a challenger, two replicas, and what a ramp said."""

    models: Store
    champion: str
    challenger: str
    fleet: Fleet
    steps: list[CanaryStep] = field(default_factory=list)

    def state(self) -> AliasState:
        """What the alias says."""
        found = aliases.read_alias(self.models, MODEL, CHAMPION)
        assert found
        return found[0]

    def climb(
        self,
        config: CanaryConfig = QUICK,
        *,
        each_round: Callable[[Progress], None] = lambda _: None,
        expected: float = 0.1,
        timeout_s: float = 1,
        questions: Sequence[Question] = QUESTIONS,
        still_wanted: Callable[[], object] = lambda: None,
    ) -> AliasState:
        """Let the challenger climb, with something that happens in each round."""
        ramp = Ramp(
            models=self.models,
            challenger=registry.read_manifest(self.models, MODEL, self.challenger),
            config=config,
            replicas=self.fleet,
            questions=lambda: questions,
            expected=expected,
            timeout_s=timeout_s,
            on_progress=each_round,
            on_step=self.steps.append,
            still_wanted=still_wanted,
        )
        found = aliases.read_alias(self.models, MODEL, CHAMPION)
        assert found
        return climb(ramp, *found)[0]


def scene(challenger: Behaviour = GOOD, replicas: int = 2) -> Scene:
    """A challenger that behaves so, beside a good champion."""
    checkpoints, models = memory_store(), memory_store()
    one, two = (register(checkpoints, models, MODEL, number).version for number in (1, 2))
    aliases.set_alias(models, MODEL, CHAMPION, one, reason="live")
    return Scene(models, one, two, Fleet(models, {one: GOOD, two: challenger}, replicas))


class TestClimb:
    """How far a challenger gets."""

    def test_a_good_one_gets_through_all_steps(self) -> None:
        """Without clients test images are sent, to all replicas; after the last step the champion is still live."""
        made = scene()
        state = made.climb()
        assert [(step.share, step.outcome) for step in made.steps] == [(0.05, "go on"), (0.5, "go on")]
        assert all(step.requests >= 60 <= step.champion_requests for step in made.steps)
        assert all(step.replayed == step.requests + step.champion_requests for step in made.steps)
        assert state.version == made.champion
        assert state.canary
        assert (state.canary.challenger, state.canary.share) == (made.challenger, 0.5)
        assert min(server.champion.requests for server in made.fleet.servers.values()) > 0

    @pytest.mark.parametrize(
        ("behaviour", "reason"),
        [
            (SLOW, "requests to the challenger took longer than"),
            (CRASHING, "requests to the challenger failed, and 0 of"),
            (WRONG, "to the evaluation"),
        ],
    )
    def test_a_bad_one_goes_back(self, behaviour: Behaviour, reason: str) -> None:
        """Slow, crashing or wrong: it goes back from the first step, with the numbers; the champion never left."""
        made = scene(behaviour)
        with pytest.raises(DeployFailed, match=f"had 5 % of the requests and went back to none: .*{reason}"):
            made.climb()
        state = made.state()
        assert (state.version, state.canary) == (made.champion, None)
        assert reason in state.reason
        assert [step.outcome for step in made.steps] == ["back"]
        assert {change.version for change in state.history} == {made.champion}

    @pytest.mark.parametrize("behaviour", [SLOW, CRASHING, WRONG])
    @pytest.mark.parametrize("shadow", [False, True])
    def test_clients_are_enough_to_find_it_out(self, behaviour: Behaviour, *, shadow: bool) -> None:
        """With requests of clients no test image is sent; as a shadow, a bad challenger answers nobody."""
        made = scene(behaviour)
        config = QUICK.model_copy(update={"step_s": 60, "shadow_first": shadow, "steps": (0.3,)})
        with pytest.raises(DeployFailed, match="a copy of 100 %" if shadow else "30 %"):
            made.climb(config, each_round=lambda _: made.fleet.requests(40, QUESTIONS))
        assert made.steps[-1].replayed == 0
        assert made.steps[-1].mode == ("shadow" if shadow else "split")

    def test_a_shadow_comes_first(self) -> None:
        """Copies for a step, then shares; the shadow's step counts the champion's requests and the copies."""
        made = scene()
        made.climb(QUICK.model_copy(update={"shadow_first": True, "steps": (0.5,)}))
        assert [(step.mode, step.share) for step in made.steps] == [("shadow", 1.0), ("split", 0.5)]
        assert made.steps[0].requests == made.steps[0].champion_requests == made.steps[0].replayed

    def test_another_model_that_is_expected_to_differ_goes_on(self) -> None:
        """Disagreement counts beyond that of the test images alone: a better model differs as well."""
        made = scene(WRONG)
        config = QUICK.model_copy(update={"step_s": 1.0, "steps": (0.3,), "minimum_requests": 10})
        made.climb(config, each_round=lambda _: made.fleet.requests(20, QUESTIONS), expected=0.97)
        assert made.steps[0].disagreed == made.steps[0].compared > 0


class TestHold:
    """Too little to judge by."""

    def test_where_clients_are_wanted_test_images_do_not_do(self) -> None:
        """They are sent all the same, which finds a broken model; then the ramp holds, says so, and keeps the share."""
        made = scene()
        config = QUICK.model_copy(update={"steps": (0.5,), "minimum_requests": 8, "real_traffic": True, "hold_s": 2.0})
        with pytest.raises(CanaryHeld, match=r"keeps 50 % of the requests: after \d s .* clients sent too few"):
            made.climb(config)
        state = made.state()
        assert state.version == made.champion
        assert state.canary
        assert (state.canary.share, made.steps[-1].outcome) == (0.5, "hold")
        assert made.steps[-1].requests >= 8

    @pytest.mark.parametrize("minimum", [1, 8])
    def test_test_images_are_enough_for_both(self, minimum: int) -> None:
        """What is sent for the champion first leaves enough for the challenger, however little that is."""
        made = scene()
        canary = Canary(challenger=made.challenger, share=0.5, started_at=utc_now())
        aliases.set_canary(made.models, MODEL, CHAMPION, canary, reason="test")
        manifest = registry.read_manifest(made.models, MODEL, made.challenger)
        for _ in range(10):
            replay = Replay(lambda: QUESTIONS, manifest, 0.5, minimum)
            while not replay.is_over:
                lacking: Role = "challenger" if replay.by_role["champion"] >= minimum else "champion"
                assert replay.round([each.client for each in made.fleet.each(lambda _: None)], lacking) is None
            assert min(replay.by_role.values()) >= minimum

    def test_it_goes_on_from_there(self) -> None:
        """Held at the second step, the ramp begins there when it is repeated, since the same time as before."""
        made = scene()
        config = QUICK.model_copy(update={"steps": (0.3, 0.5)})
        made.climb(config.model_copy(update={"steps": (0.3,)}))
        began = made.state().canary
        with pytest.raises(CanaryHeld):
            made.climb(config.model_copy(update={"steps": (0.2, 0.5), "hold_s": 0}))
        made.climb(config.model_copy(update={"steps": (0.2, 0.5)}))
        after = made.state().canary
        assert began
        assert after
        assert after.started_at == began.started_at
        assert [(step.share, step.outcome) for step in made.steps] == [(0.3, "go on"), (0.5, "hold"), (0.5, "go on")]

    def test_copies_of_test_images_do_not_do_either(self) -> None:
        """Where clients are wanted, a shadow's copies of what was sent by the ramp itself are not theirs."""
        made = scene()
        config = QUICK.model_copy(
            update={"shadow_first": True, "minimum_requests": 8, "real_traffic": True, "hold_s": 0.5}
        )
        with pytest.raises(CanaryHeld, match=r"keeps a copy of 100 % .* clients sent too few"):
            made.climb(config)
        assert made.steps[-1].requests >= 8

    def test_no_test_image_and_no_client(self) -> None:
        """Nothing at all to judge by: the numbers are said."""
        made = scene()
        with pytest.raises(CanaryHeld, match="0 of 60 requests to the challenger, 0 of 60 requests to the champion"):
            made.climb(QUICK.model_copy(update={"hold_s": 0.3}), questions=())

    def test_what_may_be_chance_until_the_end_is_a_doubt(self) -> None:
        """Beyond a limit, if not for certain, when the time is over: back."""
        made = scene()
        config = QUICK.model_copy(update={"steps": (0.5,), "more_errors": 0.0, "minimum_requests": 10, "hold_s": 1.0})
        clients = iter([60])

        def now_and_then(_: Progress) -> None:
            made.fleet.requests(next(clients, 0), QUESTIONS)
            for server in made.fleet.servers.values():
                server.challenger.errors = 1

        with pytest.raises(DeployFailed, match="this may still be chance"):
            made.climb(config, each_round=now_and_then, questions=())
        assert made.state().canary is None


class TestOthers:
    """Somebody else, and replicas that come and go."""

    def test_a_champion_that_moves_ends_the_ramp(self) -> None:
        """The alias stays where somebody else put it."""
        made = scene()

        def interfere(_: Progress) -> None:
            aliases.set_alias(made.models, MODEL, CHAMPION, made.challenger, reason="somebody else")

        with pytest.raises(Conflict, match="the ramp ends, and leaves it as it is"):
            made.climb(each_round=interfere)
        assert made.state().reason == "somebody else"

    def test_a_share_set_by_hand_ends_the_ramp(self) -> None:
        """So does a canary that somebody else changes or stops."""
        made = scene()

        def interfere(_: Progress) -> None:
            aliases.set_canary(made.models, MODEL, CHAMPION, None, reason="stopped by hand")

        with pytest.raises(Conflict):
            made.climb(each_round=interfere)
        assert made.state().reason == "stopped by hand"

    def test_whoever_is_told_to_stop_leaves_the_share(self) -> None:
        """A run that is cancelled is no doubt: the challenger keeps what it has, and the same ramp goes on later."""
        made, rounds = scene(), iter([None, None])

        def cancelled() -> None:
            if next(rounds, "cancelled"):
                raise CanaryHeld("told to stop")

        with pytest.raises(CanaryHeld, match="told to stop"):
            made.climb(QUICK.model_copy(update={"step_s": 60}), still_wanted=cancelled)
        found = made.state().canary
        assert found
        assert (found.share, made.steps) == (0.05, [])

    def test_another_challenger_takes_the_place_of_one_that_was_left(self) -> None:
        """A ramp begins at its first step, and counts anew, where another version's was held or set by hand."""
        made = scene()
        third = register(memory_store(), made.models, MODEL, 3).version
        left = Canary(challenger=third, share=0.4, step=1, started_at=utc_now())
        aliases.set_canary(made.models, MODEL, CHAMPION, left, reason="held")
        made.climb()
        assert [step.share for step in made.steps] == [0.05, 0.5]

    def test_a_replica_that_cannot_load_it(self) -> None:
        """One of two: the challenger goes back with that replica's reason."""
        made = scene()
        made.fleet.servers["127.0.0.2"].refuses = made.challenger
        with pytest.raises(DeployFailed, match=r"127.0.0.2 did not load the version; it says: model.onnx was altered"):
            made.climb(timeout_s=0.2)
        assert made.state().canary is None

    @pytest.mark.parametrize(("trouble", "said"), [("answers", "does not answer"), ("stuck", "does not show the step")])
    def test_a_replica_that_falls_silent(self, trouble: str, said: str) -> None:
        """It is waited for as long as allowed, whatever the others say; then the challenger goes back."""
        made = scene()

        def interfere(_: Progress) -> None:
            setattr(made.fleet.servers["127.0.0.1"], trouble, trouble == "stuck")

        with pytest.raises(DeployFailed, match=f"127.0.0.1 {said}"):
            made.climb(QUICK.model_copy(update={"step_s": 0.05}), each_round=interfere, timeout_s=0.3)

    def test_a_replica_that_leaves_and_one_that_comes(self) -> None:
        """What the one had counted stays counted once, and the other one is asked from then on."""
        made = scene()
        sent: list[int] = []

        def change(_: Progress) -> None:
            sent.append(20)
            made.fleet.requests(20, QUESTIONS)
            if len(sent) == 3:
                made.fleet.servers["127.0.0.3"] = Server(made.models, made.fleet.servers.pop("127.0.0.1").behaviours)

        made.climb(QUICK.model_copy(update={"steps": (0.5,), "step_s": 0.5}), each_round=change)
        (step,) = made.steps
        assert 3 * 20 < step.requests + step.champion_requests <= sum(sent) + step.replayed
        assert made.fleet.servers["127.0.0.3"].champion.requests > 0


class TestResumed:
    """Where a repeated ramp begins."""

    PLANNED = stages(CanaryConfig(shadow_first=True))

    @pytest.mark.parametrize(
        ("share", "mode", "step", "begins"),
        [
            (1.0, "shadow", 0, 0),
            (0.01, "split", 1, 1),
            (0.1, "split", 2, 2),
            (0.5, "split", 3, 3),
            (0.1, "split", 1, 2),
            (0.2, "split", 0, 3),
            (0.9, "split", 0, 3),
            (0.3, "shadow", 0, 0),
        ],
    )
    def test_at_its_step(self, share: float, mode: aliases.Mode, step: int, begins: int) -> None:
        """At the step that the alias says; where that was set by hand, at the first one that gives no less."""
        canary = Canary(challenger="ours", share=share, mode=mode, step=step, started_at=utc_now())
        assert resumed(self.PLANNED, canary, "ours") == begins
        assert resumed(self.PLANNED, canary, "another") == 0
        assert resumed(self.PLANNED, None, "ours") == 0

    @given(
        st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6, unique=True).map(sorted),
        st.booleans(),
        st.floats(0, 1),
        st.integers(0, 9),
    )
    def test_always_at_one_of_its_steps(self, shares: list[float], shadow: bool, share: float, step: int) -> None:
        """Whatever the alias says."""
        planned = stages(CanaryConfig(steps=tuple(shares), shadow_first=shadow))
        canary = Canary(challenger="ours", share=share, step=step, started_at=utc_now())
        assert planned[resumed(planned, canary, "ours")] in [Stage(each, "split") for each in shares]
