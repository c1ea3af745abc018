"""When something is done that does not always pay."""

from __future__ import annotations

from fjx.speculation.policy.payoff_gate import PayoffGate


def trials(gate: PayoffGate, steps: int, savings: float, cost: float) -> list[int]:
    """Steps of trials, each of which brings the same."""
    found = []
    for step in range(steps):
        if gate.is_trial():
            found.append(step)
            gate.observe(savings, cost)
    return found


def test_it_pays_after_trials_have_said_so() -> None:
    gate = PayoffGate()
    assert trials(gate, 64, savings=3e-3, cost=1e-3) == [0, 16, 32, 48]
    assert not gate.pays
    trials(gate, 100, savings=3e-3, cost=1e-3)
    assert gate.pays


def test_trials_become_rare_where_it_does_not_pay() -> None:
    gate = PayoffGate()
    found = trials(gate, 4000, savings=1e-3, cost=2e-3)
    assert not gate.pays
    assert len(found) < 20
    trials(gate, 20_000, savings=4e-3, cost=2e-3)
    assert gate.pays
