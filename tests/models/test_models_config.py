"""What `jobs/models.py` is told: one model, or none to list."""

import pytest

from pipeline.models.config import ModelsConfig
from pipeline.records.vocabulary import UsageError


@pytest.mark.parametrize(("action", "names"), [("list", ()), ("card", ("baseline",)), ("export", ("run",))])
def test_an_action_takes_the_models_that_it_needs(action, names):
    assert ModelsConfig(action=action, names=names).names == names


@pytest.mark.parametrize(("action", "names"), [("list", ("a",)), ("card", ()), ("export", ("a", "b"))])
def test_too_few_or_too_many_are_told(action, names):
    with pytest.raises(UsageError, match=action):
        ModelsConfig(action=action, names=names)
